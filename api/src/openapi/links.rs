//! Links from answers to the operations that take what they give: for readers of the document, and for programs that walk through it.

use utoipa::openapi::{OpenApi, RefOr, link::Link, path::Operation};

/// Where an id comes from: operation, status, parameter, place in the answer.
const SOURCES: [(&str, &str, &str, &str); 5] = [
    ("upload_file", "200", "file_id", "$response.body#/id"),
    ("get_upload_links", "200", "file_id", "$response.body#/file_id"),
    ("complete_multipart_upload", "200", "file_id", "$response.body#/id"),
    ("create_solver_job", "201", "job_id", "$response.body#/id"),
    ("list_solvers", "200", "solver_key", "$response.body#/0/id"),
];

/// Adds a link for each operation whose path has the parameter and no others but those of the source's own path.
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
            for (_, status, parameter, place) in SOURCES.iter().filter(|source| source.0 == name) {
                let Some(RefOr::T(response)) = operation.responses.responses.get_mut(*status)
                else {
                    continue;
                };
                for (target, needs) in &operations {
                    let known = |need: &String| need == parameter || own.contains(need);
                    // An upload that is complete is a file; until then it can be completed or aborted.
                    let upload = target.ends_with("_multipart_upload");
                    let fits = *parameter != "file_id" || upload == (name == "get_upload_links");
                    if !fits
                        || !needs.iter().any(|need| need == parameter)
                        || !needs.iter().all(known)
                    {
                        continue;
                    }
                    let link =
                        needs.iter().fold(Link::builder().operation_id(target), |link, need| {
                            let from_path = format!("$request.path.{need}");
                            let value =
                                if need == parameter { (*place).to_owned() } else { from_path };
                            link.parameter(need, value)
                        });
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
