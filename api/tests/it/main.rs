//! Black-box tests: the store on both databases, the app on free ports with the real Docker engine, and the documents it publishes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod admission;
mod contract;
mod dispatch;
mod errors;
mod files;
mod forms;
mod http;
mod instances;
mod limits;
mod openapi;
mod runner;
mod store;
mod studies;
mod support;
mod validation;
mod waiting;
mod webhooks;
