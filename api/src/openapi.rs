//! The OpenAPI document: its head here, its body from the served routes.

mod links;
mod version_3_0;

use actix_web::App;
use utoipa::{
    Modify, OpenApi, Path,
    openapi::{
        HttpMethod, PathItem, Ref, RefOr, Schema,
        path::{Callback, Operation, Parameter, ParameterIn},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_actix_web::AppExt;

use crate::{
    domain::{
        solver::{SolverKey, Version},
        webhook::JobMessage,
    },
    jobs::callbacks::__path_job_ended as JobEnded,
    routes,
};

pub use version_3_0::version_3_0;

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
    // What is said in answers only is found by itself.
    components(schemas(JobMessage)),
    security(("basic" = [])),
    modifiers(&Basic, &Callbacks)
)]
struct Head;

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

/// What the service itself asks of others.
struct Callbacks;

impl Modify for Callbacks {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let told = PathItem::new(HttpMethod::Post, JobEnded::operation());
        let callback = Callback::from([(JobEnded::path(), RefOr::T(told))]);
        let components = document.components.get_or_insert_default();
        components.callbacks.insert("job_ended".to_owned(), RefOr::T(callback));
    }
}

/// The document of everything that is served under `/v0`.
pub fn document() -> utoipa::openapi::OpenApi {
    let app = App::new().into_utoipa_app().openapi(Head::openapi()).configure(routes::routes);
    let mut document = app.split_for_parts().1;
    for (path, item) in &mut document.paths.paths {
        let operations =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            leave_out_errors(path, operation);
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    name_pattern(parameter);
                }
            }
        }
        if let Some(create) = &mut item.post
            && matches!(
                create.operation_id.as_deref(),
                Some("create_solver_job" | "create_study_job")
            )
        {
            let told = Ref::new("#/components/callbacks/job_ended");
            create.callbacks.insert("job_ended".to_owned(), told.into());
        }
    }
    links::add(&mut document);
    document
}

/// Operations that look for what their query or body names.
const FINDING: [&str; 3] = ["find_jobs", "inspect_jobs", "batch_get_jobs_custom_metadata"];

/// Takes back what [`crate::error::Errors`] says of an operation, although it cannot happen there.
fn leave_out_errors(path: &str, operation: &mut Operation) {
    let id = operation.operation_id.as_deref().unwrap_or_default();
    let finds = path.contains('{') || FINDING.contains(&id);
    let reads_body = operation.request_body.is_some();
    let reads_anything = reads_body || operation.parameters.is_some();
    operation.responses.responses.retain(|status, _| match status.as_str() {
        "404" => finds,
        "408" | "413" => reads_body,
        "422" => reads_anything,
        _ => true,
    });
}

/// Names that mean the same in every path have the same pattern, too. It stands where names are parsed; the derive takes only literals.
fn name_pattern(parameter: &mut Parameter) {
    let pattern = match (&parameter.parameter_in, parameter.name.as_str()) {
        (ParameterIn::Path, "solver_key") => SolverKey::PATTERN,
        (ParameterIn::Path, "version") => Version::PATTERN,
        _ => return,
    };
    if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema {
        schema.pattern = Some(pattern.to_owned());
    }
}
