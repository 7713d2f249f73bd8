//! solverd: any containerised solver as a typed HTTP API.
//!
//! In the order of a request: [`app`] puts everything together, [`routes`] shows every route, the handlers ([`meta`], [`users`],
//! [`files`], [`solvers`], [`jobs`], [`studies`], [`wallets`]) read it with [`auth`], [`request`] and [`paging`] and answer with types of their own or with
//! [`error`]; [`limits`] bounds what one caller may ask at once. They ask the [`store`] (SQL) and [`objects`] (S3) for [`domain`] things.
//! [`dispatch`] runs jobs beside them.

pub mod app;
pub mod auth;
pub mod dispatch;
pub mod domain;
pub mod error;
pub mod files;
pub mod jobs;
pub mod limits;
pub mod meta;
pub mod objects;
pub mod openapi;
pub mod paging;
pub mod report;
pub mod request;
pub mod routes;
pub mod settings;
pub mod solvers;
pub mod store;
pub mod studies;
pub mod users;
pub mod wallets;

pub use app::App;
