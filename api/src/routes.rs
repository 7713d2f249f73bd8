//! Every route, in the order a user meets them. Router and OpenAPI document are built from this page at once.
//!
//! Order matters where one path is a special case of another: fixed segments and `:verbs` stand before `{job_id}`.

use utoipa_actix_web::service_config::ServiceConfig;

use crate::{files, jobs, meta, solvers, studies, users, wallets};

/// The API.
pub fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(meta::get_service_metadata)
        .service(meta::get_service_state)
        .service(users::get_my_profile)
        .service(users::update_my_profile)
        // files
        .service(files::search_files_page)
        .service(files::get_upload_links)
        .service(files::form::upload_file)
        .service(files::complete_multipart_upload)
        .service(files::abort_multipart_upload)
        .service(files::list_files)
        .service(files::download_file)
        .service(files::get_file)
        .service(files::delete_file)
        // solvers
        .service(solvers::list_solvers)
        .service(solvers::list_all_solvers_paginated)
        .service(solvers::list_solvers_releases)
        .service(solvers::get_solver)
        .service(solvers::list_solver_releases)
        .service(solvers::list_solver_releases_paginated)
        .service(solvers::get_solver_release)
        .service(solvers::list_solver_ports)
        .service(wallets::get_solver_pricing_plan)
        // jobs
        .service(jobs::lists::find_jobs)
        .service(jobs::lists::inspect_jobs)
        .service(jobs::lists::list_all_solvers_jobs)
        .service(jobs::lists::batch_get_jobs_custom_metadata)
        .service(jobs::create_solver_job)
        .service(jobs::list_jobs)
        .service(jobs::list_jobs_paginated)
        .service(jobs::start_job)
        .service(jobs::inspect_job)
        .service(jobs::stop_job)
        .service(jobs::get_job_outputs)
        .service(jobs::get_job_output_logfile)
        .service(jobs::get_log_stream)
        .service(jobs::get_job_events)
        .service(jobs::get_job_callback)
        .service(jobs::get_job_custom_metadata)
        .service(jobs::replace_job_custom_metadata)
        .service(wallets::get_job_wallet)
        .service(wallets::get_job_pricing_unit)
        .service(jobs::delete_job_assets)
        .service(jobs::get_job)
        .service(jobs::delete_job)
        // studies
        .service(studies::list_studies)
        .service(studies::clone_study)
        .service(studies::get_study)
        .service(studies::list_study_ports)
        .service(studies::create_study_job)
        .service(studies::list_study_jobs)
        .service(studies::start_study_job)
        .service(studies::inspect_study_job)
        .service(studies::stop_study_job)
        .service(studies::get_study_job_outputs)
        .service(studies::get_study_job_output_logfile)
        .service(studies::get_study_job_custom_metadata)
        .service(studies::replace_study_job_custom_metadata)
        .service(studies::get_study_job)
        .service(studies::delete_study_job)
        // money
        .service(wallets::get_default_wallet)
        .service(wallets::get_wallet)
        .service(wallets::get_available_licensed_items_for_wallet)
        .service(wallets::checkout_licensed_item)
        .service(wallets::get_credits_price);
}
