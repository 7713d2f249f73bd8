//! What can be run.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

use actix_web::{
    HttpRequest, get,
    web::{Data, Json},
};
use serde::Serialize;

use utoipa::{IntoParams, ToSchema};

use crate::{
    auth::Caller,
    domain::{
        filter::Glob,
        solver::{Port, Release, SolverKey, Version},
    },
    error::{Errors, Result},
    paging::{Page, Paging},
    request::{BaseUrl, Params, from_request},
    store::Db,
};

from_request!(SolverPath, ReleasePath, SolverFilter);

/// A page of releases. An alias, because utoipa would look for a derive on `Page<Solver>`.
type SolverPage = Page<Solver>;

/// Names a solver in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct SolverPath {
    /// Key of the solver; its slashes may be written as `%2F` or as they are.
    #[param(value_type = String, example = "simcore/services/comp/itis/sleeper")]
    pub solver_key: SolverKey,
}

impl SolverPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        Ok(Self { solver_key: Self::key(&Params::of_path(request)?)? })
    }

    fn key(params: &Params) -> Result<SolverKey> {
        params.need("solver_key", SolverKey::RULE, SolverKey::parse)
    }
}

/// Names a release in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ReleasePath {
    /// Key of the solver; its slashes may be written as `%2F` or as they are.
    #[param(value_type = String, example = "simcore/services/comp/itis/sleeper")]
    pub solver_key: SolverKey,
    /// Version of the solver.
    #[param(value_type = String, example = "2.1.6")]
    pub version: Version,
}

impl ReleasePath {
    fn of(request: &HttpRequest) -> Result<Self> {
        Self::read(&Params::of_path(request)?)
    }

    /// Reads both from a path's parameters.
    pub fn read(params: &Params) -> Result<Self> {
        let solver_key = SolverPath::key(params)?;
        Ok(Self { solver_key, version: params.need("version", Version::RULE, Version::parse)? })
    }
}

/// Which releases are looked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SolverFilter {
    /// Releases of solvers whose key matches; `*` is any text, `?` any character.
    #[param(value_type = String, max_length = 512, required = false, example = "*/sleeper")]
    solver_id: Option<Glob>,
    /// Releases whose version, as their authors call it, matches.
    #[param(value_type = String, max_length = 512, required = false)]
    version_display: Option<Glob>,
}

impl SolverFilter {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_query(request)?;
        Ok(Self {
            solver_id: params.get("solver_id", Glob::RULE, Glob::parse)?,
            version_display: params.get("version_display", Glob::RULE, Glob::parse)?,
        })
    }

    fn matches(&self, release: &Release) -> bool {
        let display = release.version_display.as_deref();
        self.solver_id.as_ref().is_none_or(|glob| glob.matches(release.key.as_str()))
            && self
                .version_display
                .as_ref()
                .is_none_or(|glob| display.is_some_and(|text| glob.matches(text)))
    }
}

/// A release of a solver.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "id": "simcore/services/comp/itis/sleeper", "version": "2.1.6", "title": "sleeper", "description": "Sleeps.",
    "maintainer": "ada@example.org", "version_display": null,
    "url": "http://127.0.0.1:8000/v0/solvers/simcore/services/comp/itis/sleeper/releases/2.1.6"
}))]
pub struct Solver {
    /// Key of the solver.
    id: String,
    /// Semantic version.
    version: String,
    #[schema(max_length = 100)]
    title: String,
    #[schema(max_length = 1000)]
    description: Option<String>,
    /// E-mail address of whoever answers for it.
    maintainer: String,
    /// This release.
    #[schema(format = "uri")]
    url: Option<String>,
    /// The version as its authors call it.
    version_display: Option<String>,
}

/// Path of a release below the server.
pub fn release_path(key: &SolverKey, version: impl std::fmt::Display) -> String {
    format!("/v0/solvers/{key}/releases/{version}")
}

impl Solver {
    fn new(release: Release, base: &BaseUrl) -> Self {
        Self {
            url: Some(base.join(&release_path(&release.key, &release.version))),
            id: release.key.into(),
            version: release.version.to_string(),
            title: release.title,
            description: Some(release.description),
            maintainer: release.maintainer,
            version_display: release.version_display,
        }
    }
}

/// A typed input or output of a release.
#[derive(Serialize, ToSchema)]
pub struct SolverPort {
    #[schema(pattern = r"^[^_\W0-9]\w*$")]
    key: String,
    kind: PortKind,
    /// JSON Schema of its values.
    #[schema(value_type = Option<Object>)]
    content_schema: Option<serde_json::Value>,
}

/// Which way values go.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// Into the solver.
    Input,
    /// Out of the solver.
    Output,
}

/// All ports of a release.
#[derive(Serialize, ToSchema)]
#[schema(as = OnePage_SolverPort_)]
pub struct SolverPorts {
    /// Inputs, then outputs, as they were declared.
    items: Vec<SolverPort>,
    total: Option<usize>,
}

/// List solvers.
///
/// The newest release of each.
#[utoipa::path(tag = "solvers", responses((status = 200, description = "Solvers by key.", body = Vec<Solver>), Errors))]
#[get("/v0/solvers")]
pub async fn list_solvers(_: Caller, base: BaseUrl, db: Data<Db>) -> Result<Json<Vec<Solver>>> {
    // Sorted by key, then version: of equal keys the last is the newest.
    let mut newest: Vec<Release> = Vec::new();
    for release in db.releases_all().await? {
        newest.pop_if(|last| last.key == release.key);
        newest.push(release);
    }
    Ok(Json(newest.into_iter().map(|release| Solver::new(release, &base)).collect()))
}

/// Find releases, in pages.
#[utoipa::path(tag = "solvers", params(SolverFilter, Paging), responses((status = 200, description = "A page of releases by key, newest version first.", body = SolverPage), Errors))]
#[get("/v0/solvers/page")]
pub async fn list_all_solvers_paginated(
    filter: SolverFilter,
    paging: Paging,
    _: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<SolverPage>> {
    let mut releases = db.releases_all().await?;
    releases.retain(|release| filter.matches(release));
    releases.sort_by(|a, b| (&a.key, &b.version).cmp(&(&b.key, &a.version)));
    let shown = releases.into_iter().map(|release| Solver::new(release, &base));
    Ok(Json(paging.cut(shown.collect())))
}

/// List all releases.
#[utoipa::path(tag = "solvers", responses((status = 200, description = "Releases by key, then version.", body = Vec<Solver>), Errors))]
#[get("/v0/solvers/releases")]
pub async fn list_solvers_releases(
    _: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<Vec<Solver>>> {
    Ok(Json(
        db.releases_all().await?.into_iter().map(|release| Solver::new(release, &base)).collect(),
    ))
}

/// Get the newest release of a solver.
#[utoipa::path(tag = "solvers", params(SolverPath), responses((status = 200, description = "The newest release.", body = Solver), Errors))]
#[get("/v0/solvers/{solver_key:.+}/latest")]
pub async fn get_solver(
    path: SolverPath,
    _: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<Solver>> {
    let newest = db.releases_of(&path.solver_key).await?.pop();
    let newest = newest.ok_or_else(|| crate::store::Error::NotFound {
        what: "solver",
        id: path.solver_key.to_string(),
    })?;
    Ok(Json(Solver::new(newest, &base)))
}

/// List the releases of a solver.
#[utoipa::path(tag = "solvers", params(SolverPath), responses((status = 200, description = "Releases, oldest version first.", body = Vec<Solver>), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases")]
pub async fn list_solver_releases(
    path: SolverPath,
    _: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<Vec<Solver>>> {
    let releases = db.releases_of(&path.solver_key).await?;
    Ok(Json(releases.into_iter().map(|release| Solver::new(release, &base)).collect()))
}

/// List the releases of a solver, in pages.
#[utoipa::path(tag = "solvers", params(SolverPath, Paging), responses((status = 200, description = "A page of releases, newest version first.", body = SolverPage), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/page")]
pub async fn list_solver_releases_paginated(
    path: SolverPath,
    paging: Paging,
    _: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<SolverPage>> {
    let releases = db.releases_of(&path.solver_key).await?.into_iter().rev();
    Ok(Json(paging.cut(releases.map(|release| Solver::new(release, &base)).collect())))
}

/// Get a release.
#[utoipa::path(tag = "solvers", params(ReleasePath), responses((status = 200, description = "The release.", body = Solver), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}")]
pub async fn get_solver_release(
    path: ReleasePath,
    _: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<Solver>> {
    Ok(Json(Solver::new(db.release_get(&path.solver_key, &path.version).await?, &base)))
}

/// List the ports of a release.
#[utoipa::path(tag = "solvers", params(ReleasePath), responses((status = 200, description = "Inputs, then outputs.", body = SolverPorts), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/ports")]
pub async fn list_solver_ports(
    path: ReleasePath,
    _: Caller,
    db: Data<Db>,
) -> Result<Json<SolverPorts>> {
    let release = db.release_get(&path.solver_key, &path.version).await?;
    let shown = |kind: PortKind| {
        move |port: Port| SolverPort {
            content_schema: Some(port.content_schema()),
            key: port.key,
            kind,
        }
    };
    let inputs = release.inputs.into_iter().map(shown(PortKind::Input));
    let items: Vec<_> =
        inputs.chain(release.outputs.into_iter().map(shown(PortKind::Output))).collect();
    Ok(Json(SolverPorts { total: Some(items.len()), items }))
}
