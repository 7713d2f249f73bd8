/* tslint:disable */
/* eslint-disable */
export * from './FilesApi.js';
export * from './JobsApi.js';
export * from './MetaApi.js';
export * from './SolversApi.js';
export * from './UsersApi.js';
