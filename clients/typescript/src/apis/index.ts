/* tslint:disable */
/* eslint-disable */
export * from './CreditsApi.js';
export * from './FilesApi.js';
export * from './JobsApi.js';
export * from './MetaApi.js';
export * from './SolversApi.js';
export * from './StudiesApi.js';
export * from './UsersApi.js';
export * from './WalletsApi.js';
