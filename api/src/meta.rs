//! The service itself.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

use std::collections::BTreeMap;

use actix_web::{
    HttpResponse, Responder, get,
    web::{Data, Json},
};
use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, Schema},
};

use crate::{
    error::{ApiError, ErrorCode, Result},
    request::BaseUrl,
    solvers::version_schema,
    store::Db,
};

/// The version of oSPARC's API whose contract is kept. Clients compare it with what they need.
const API_VERSION: &str = "0.16.0";

/// What answers here.
#[derive(Serialize, ToSchema)]
pub struct Meta {
    /// Name of the service.
    name: &'static str,
    /// Version of the API, as oSPARC counts it.
    #[schema(schema_with = version_schema)]
    version: &'static str,
    /// Versions of the API that are served.
    #[schema(schema_with = released)]
    released: BTreeMap<&'static str, &'static str>,
    /// The documentation for people.
    #[schema(format = "uri", min_length = 1, max_length = 2083)]
    docs_url: String,
    /// The same; oSPARC has a second one.
    #[schema(format = "uri", min_length = 1, max_length = 2083)]
    docs_dev_url: String,
}

fn released() -> Object {
    ObjectBuilder::new().additional_properties(Some(Schema::from(version_schema()))).build()
}

/// Describe the service.
///
/// Needs no credentials.
#[utoipa::path(tag = "meta", security(()), responses((status = 200, description = "The service.", body = Meta)))]
#[get("/v0/meta")]
pub async fn get_service_metadata(base: BaseUrl) -> Json<Meta> {
    let docs = base.join("/docs");
    Json(Meta {
        name: "solverd",
        version: API_VERSION,
        released: BTreeMap::from([("v0", API_VERSION)]),
        docs_url: docs.clone(),
        docs_dev_url: docs,
    })
}

/// For load balancers: whether the service can answer. Not part of the API.
pub async fn health(db: Data<Db>) -> Result<impl Responder> {
    db.ping().await.map_err(|error| ApiError::internal(ErrorCode::Internal, error))?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain")
        .body(format!("solverd {} is healthy\n", env!("CARGO_PKG_VERSION"))))
}
