//! What we share with oSPARC's public API 0.16.0: operations, and the statuses by which its clients tell that something went well.
//!
//! Written down after a comparison with oSPARC's own document, which is not part of this repository.

use crate::openapi::operations;

/// Method, path, statuses of success and redirection.
const SHARED: [(&str, &str, &[&str]); 57] = [
    ("GET", "/v0/meta", &["200"]),
    ("GET", "/v0/me", &["200"]),
    ("PUT", "/v0/me", &["200"]),
    ("GET", "/v0/files", &["200"]),
    ("GET", "/v0/files:search", &["200"]),
    ("POST", "/v0/files/content", &["200"]),
    ("POST", "/v0/files/{file_id}:complete", &["200"]),
    ("POST", "/v0/files/{file_id}:abort", &["200"]),
    ("GET", "/v0/files/{file_id}", &["200"]),
    ("GET", "/v0/files/{file_id}/content", &["200", "307"]),
    ("DELETE", "/v0/files/{file_id}", &["200"]),
    ("GET", "/v0/solvers", &["200"]),
    ("GET", "/v0/solvers/page", &["200"]),
    ("GET", "/v0/solvers/releases", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/latest", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/page", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/ports", &["200"]),
    ("GET", "/v0/solvers/-/releases/-/jobs", &["200"]),
    ("GET", "/v0/solvers/-/releases/-/jobs/metadata:batchGet", &["200"]),
    ("POST", "/v0/solvers/{solver_key}/releases/{version}/jobs", &["201"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/page", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}", &["200"]),
    ("DELETE", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}", &["204"]),
    ("DELETE", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/assets", &["204"]),
    ("POST", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}:start", &["200", "202"]),
    ("POST", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}:stop", &["200"]),
    ("POST", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}:inspect", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/outputs", &["200"]),
    (
        "GET",
        "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/outputs/logfile",
        &["200", "307"],
    ),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/logstream", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/metadata", &["200"]),
    ("PATCH", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/metadata", &["200"]),
    ("GET", "/v0/studies", &["200"]),
    ("GET", "/v0/studies/{study_id}", &["200"]),
    ("POST", "/v0/studies/{study_id}:clone", &["201"]),
    ("GET", "/v0/studies/{study_id}/ports", &["200"]),
    ("GET", "/v0/studies/{study_id}/jobs", &["200"]),
    ("POST", "/v0/studies/{study_id}/jobs", &["200"]),
    ("DELETE", "/v0/studies/{study_id}/jobs/{job_id}", &["204"]),
    ("POST", "/v0/studies/{study_id}/jobs/{job_id}:start", &["200", "202"]),
    ("POST", "/v0/studies/{study_id}/jobs/{job_id}:stop", &["200"]),
    ("POST", "/v0/studies/{study_id}/jobs/{job_id}:inspect", &["200"]),
    ("POST", "/v0/studies/{study_id}/jobs/{job_id}/outputs", &["200"]),
    ("GET", "/v0/studies/{study_id}/jobs/{job_id}/outputs/log-links", &["200"]),
    ("GET", "/v0/studies/{study_id}/jobs/{job_id}/metadata", &["200"]),
    ("PUT", "/v0/studies/{study_id}/jobs/{job_id}/metadata", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/pricing_plan", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/wallet", &["200"]),
    ("GET", "/v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/pricing_unit", &["200"]),
    ("GET", "/v0/wallets/default", &["200"]),
    ("GET", "/v0/wallets/{wallet_id}", &["200"]),
    ("GET", "/v0/wallets/{wallet_id}/licensed-items", &["200"]),
    ("POST", "/v0/wallets/{wallet_id}/licensed-items/{licensed_item_id}/checkout", &["200"]),
    ("GET", "/v0/credits/price", &["200"]),
];

#[test]
fn shared_operations_have_the_contracts_statuses() {
    let operations = operations();
    for (method, path, expected) in SHARED {
        let operation = operations.iter().find(|ours| ours.method == method && ours.path == path);
        let operation = operation.unwrap_or_else(|| panic!("there is no {method} {path}"));
        let responses = operation.definition["responses"].as_object().unwrap();
        let mut statuses: Vec<_> =
            responses.keys().filter(|status| status.starts_with(['2', '3'])).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, expected, "{method} {path}");
    }
}

/// oSPARC's clients leave out what has a default, and generated ones must be able to.
#[test]
fn every_query_parameter_is_optional() {
    for operation in operations() {
        for parameter in operation.definition["parameters"].as_array().into_iter().flatten() {
            let required = parameter["required"].as_bool().unwrap_or(false);
            // oSPARC demands this one as well.
            let demanded = parameter["in"] == "path" || parameter["name"] == "job_ids";
            assert_eq!(required, demanded, "{}: {parameter}", operation.id());
        }
    }
}
