//! Links from answers to the operations that take what they give: for readers of the document, and for programs that walk through it.

use utoipa::openapi::{OpenApi, RefOr, link::Link, path::Operation};

/// An operation, the status of an answer, and what that gives: parameters of other operations, and where in the answer they are.
type Source = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Where ids come from.
const SOURCES: [Source; 10] = [
    ("upload_file", "200", &[("file_id", "$response.body#/id")]),
    ("get_upload_links", "200", &[("file_id", "$response.body#/file_id")]),
    ("complete_multipart_upload", "200", &[("file_id", "$response.body#/id")]),
    ("list_files", "200", &[("file_id", "$response.body#/0/id")]),
    (
        "list_solvers",
        "200",
        &[("solver_key", "$response.body#/0/id"), ("version", "$response.body#/0/version")],
    ),
    ("create_solver_job", "201", &[("job_id", "$response.body#/id")]),
    ("list_studies", "200", &[("study_id", "$response.body#/items/0/uid")]),
    ("clone_study", "201", &[("study_id", "$response.body#/uid")]),
    ("create_study_job", "200", &[("job_id", "$response.body#/id")]),
    ("get_default_wallet", "200", &[("wallet_id", "$response.body#/walletId")]),
];

/// Adds a link for each operation whose path has a parameter that the source gives and no others but those of the source's own path.
pub(super) fn add(document: &mut OpenApi) {
    let operations: Vec<(String, Vec<String>)> = document
        .paths
        .paths
        .iter()
        .flat_map(|(path, item)| {
            let operations = [&item.get, &item.put, &item.post, &item.patch, &item.delete];
            operations.into_iter().flatten().map(|each| (id(each), holes(path))).collect::<Vec<_>>()
        })
        .collect();
    for (path, item) in &mut document.paths.paths {
        let own = holes(path);
        let each =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in each.into_iter().flatten() {
            let name = id(operation);
            for (_, status, gives) in SOURCES.iter().filter(|source| source.0 == name) {
                let Some(RefOr::T(response)) = operation.responses.responses.get_mut(*status)
                else {
                    continue;
                };
                let given = |need: &str| gives.iter().find(|(parameter, _)| *parameter == need);
                let value = |need: &String| {
                    let from_path = || own.contains(need).then(|| format!("$request.path.{need}"));
                    given(need).map(|(_, place)| (*place).to_owned()).or_else(from_path)
                };
                for (target, needs) in &operations {
                    // An upload that is complete is a file; until then it can be completed or aborted.
                    let upload = target.ends_with("_multipart_upload");
                    let fits = given("file_id").is_none() || upload == (name == "get_upload_links");
                    if !fits || !needs.iter().any(|need| given(need).is_some()) {
                        continue;
                    }
                    let Some(values) = needs.iter().map(value).collect::<Option<Vec<_>>>() else {
                        continue;
                    };
                    let link = Link::builder().operation_id(target);
                    let link = needs
                        .iter()
                        .zip(values)
                        .fold(link, |link, (need, value)| link.parameter(need, value));
                    response.links.insert(target.clone(), RefOr::T(link.build()));
                }
            }
        }
    }
}

fn id(operation: &Operation) -> String {
    operation.operation_id.clone().unwrap_or_default()
}

/// The parameters of a path.
fn holes(path: &str) -> Vec<String> {
    path.split('{').skip(1).filter_map(|part| part.split('}').next()).map(str::to_owned).collect()
}
