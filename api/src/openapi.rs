//! The OpenAPI document: its head here, its body from the served routes.

use actix_web::App;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_actix_web::AppExt;

use crate::routes;

/// Head of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "solverd",
        description = "Turns any containerised solver into a typed HTTP API: upload files, run jobs, follow their progress and logs, \
                       download their outputs. Compatible with the public oSPARC API.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
        contact(name = "solverd")
    ),
    servers((url = "/", description = "This service.")),
    tags(
        (name = "meta", description = "The service itself."),
        (name = "users", description = "Who you are."),
        (name = "files", description = "Content that goes into solvers and comes out of them."),
        (name = "solvers", description = "What can be run."),
        (name = "jobs", description = "Runs of solvers."),
        (name = "studies", description = "Solvers made of steps, and their runs."),
        (name = "wallets", description = "What pays for jobs: nothing has a price here."),
        (name = "credits", description = "What wallets hold: there are none."),
    ),
    security(("basic" = [])),
    modifiers(&Basic)
)]
pub struct Head;

struct Basic;

impl Modify for Basic {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let basic = HttpBuilder::new()
            .scheme(HttpAuthScheme::Basic)
            .description(Some("An API key as user name, its secret as password."));
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("basic", SecurityScheme::Http(basic.build()));
    }
}

/// The document of everything that is served under `/v0`.
pub fn document() -> utoipa::openapi::OpenApi {
    App::new()
        .into_utoipa_app()
        .openapi(Head::openapi())
        .configure(routes::routes)
        .split_for_parts()
        .1
}
