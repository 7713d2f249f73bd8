//! The service itself.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

use std::{collections::BTreeMap, error::Error, time::Duration};

use actix_web::{
    HttpResponse, Responder, get,
    web::{Data, Json},
};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, Schema},
};

use crate::{
    dispatch::Dispatcher,
    domain::time::now,
    error::{ErrorBody, Result},
    objects::Objects,
    report::chain,
    request::BaseUrl,
    solvers::version_schema,
    store::Db,
};

/// What the service needs has so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);

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
#[utoipa::path(tag = "meta", security(()), responses(
    (status = 200, description = "The service.", body = Meta),
    (status = 431, description = "Target and headers are larger than is accepted.", body = ErrorBody),
))]
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

/// Whether the service and what it needs work.
#[derive(Serialize, ToSchema)]
pub struct AppStatusCheck {
    /// Name of the service.
    app_name: &'static str,
    /// Its own version.
    version: &'static str,
    /// What the service needs: `database`, `object_store` and `engine`.
    services: BTreeMap<&'static str, ServiceStatus>,
    /// Empty; oSPARC has some.
    sessions: BTreeMap<String, serde_json::Value>,
    /// This answer.
    #[schema(format = "uri", min_length = 1)]
    url: String,
    /// Null: there is no further report.
    #[schema(format = "uri")]
    diagnostics_url: Option<String>,
}

/// Whether something that the service needs works.
#[derive(Serialize, ToSchema)]
pub struct ServiceStatus {
    /// Whether it answered within two seconds, and without an error; the log knows which one.
    healthy: bool,
}

impl ServiceStatus {
    async fn of<E: Error + 'static>(
        name: &str,
        asked: impl Future<Output = Result<(), E>>,
    ) -> Self {
        let trouble = match timeout(PATIENCE, asked).await {
            Ok(Ok(())) => return Self { healthy: true },
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {} seconds", PATIENCE.as_secs()),
        };
        tracing::warn!(service = name, error = trouble, "something that the service needs is ill");
        Self { healthy: false }
    }
}

/// Tell whether the service works.
///
/// Asks database, object store and container engine whether they answer. Needs no credentials.
#[utoipa::path(tag = "meta", security(()), responses(
    (status = 200, description = "What works, and what does not.", body = AppStatusCheck),
    (status = 431, description = "Target and headers are larger than is accepted.", body = ErrorBody),
))]
#[get("/v0/state")]
pub async fn get_service_state(
    base: BaseUrl,
    db: Data<Db>,
    objects: Data<Objects>,
    dispatcher: Data<Dispatcher>,
) -> Json<AppStatusCheck> {
    state(base, db, objects, dispatcher).await
}

/// The same, where oSPARC has it as well. Not part of the API.
pub async fn state(
    base: BaseUrl,
    db: Data<Db>,
    objects: Data<Objects>,
    dispatcher: Data<Dispatcher>,
) -> Json<AppStatusCheck> {
    let (database, object_store, engine) = tokio::join!(
        ServiceStatus::of("database", db.ping()),
        ServiceStatus::of("object_store", objects.ping()),
        ServiceStatus::of("engine", dispatcher.ping()),
    );
    Json(AppStatusCheck {
        app_name: "solverd",
        version: env!("CARGO_PKG_VERSION"),
        services: BTreeMap::from([
            ("database", database),
            ("object_store", object_store),
            ("engine", engine),
        ]),
        sessions: BTreeMap::new(),
        url: base.join("/v0/state"),
        diagnostics_url: None,
    })
}

/// A sign of life, as oSPARC gives it. Not part of the API.
pub async fn alive() -> impl Responder {
    HttpResponse::Ok().content_type("text/plain").body(format!("solverd@{}\n", now().to_rfc3339()))
}

/// For load balancers: whether the service can answer. Not part of the API.
pub async fn health(db: Data<Db>) -> Result<impl Responder> {
    db.ping().await?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain")
        .body(format!("solverd {} is healthy\n", env!("CARGO_PKG_VERSION"))))
}
