//! The service, put together: [`App::bind`] takes the ports and opens everything, [`App::run`] serves until it is told to stop.

use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use actix_web::{
    HttpResponse, HttpServer,
    http::header,
    middleware::from_fn,
    web::{self, Data, PayloadConfig},
};
use anyhow::{Context, anyhow, bail};
use solverd_runner::engine::Docker;
use tokio_util::sync::CancellationToken;
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::SwaggerUi;
use uuid::Uuid;

use crate::{
    auth::authenticate,
    dispatch::{Dispatcher, Wake, Webhooks},
    domain::{
        time::now,
        user::{Credentials, check_key, parse_email, secret_hash},
    },
    error::default_route,
    files::form::Uploads,
    jobs::Rules,
    limits::{InFlight, limit},
    meta,
    objects::{
        Location, Objects, Secret,
        embedded::{self, Embedded},
    },
    openapi,
    request::{BODY_LIMIT, PublicUrl},
    routes,
    settings::Settings,
    store::{self, Db},
};

/// Connections of each worker; more wait until one of them is closed.
const CONNECTIONS: usize = 4096;

/// A client that has not sent a whole head by then is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection without requests is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The service with its ports taken and its parts open.
pub struct App {
    listener: TcpListener,
    address: SocketAddr,
    public_url: Option<String>,
    db: Db,
    objects: Objects,
    storage: Option<Storage>,
    dispatcher: Dispatcher,
    rules: Rules,
    wake: Wake,
    first_user: Option<(String, Credentials)>,
    /// Keeps other services from the data folder.
    lock: File,
}

/// The embedded S3 endpoint, being served: from the moment its bucket is looked for.
struct Storage {
    served: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

impl App {
    /// Opens database, object store and container engine, takes the ports, and tidies up after an earlier life.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let data_dir = make_data_dir(&settings.data_dir)?;
        let settings = &Settings { data_dir: data_dir.clone(), ..settings.clone() };
        let listener = TcpListener::bind(settings.listen)
            .with_context(|| format!("listening on {} (setting `listen`)", settings.listen))?;
        let address = listener.local_addr()?;
        let (instance, lock) = instance(&data_dir)?;
        let db = open_db(settings).await?;
        let (location, storage) = storage(settings).await?;
        let objects = Objects::connect(&location)
            .await
            .with_context(|| format!("connecting to the object store at {}", location.endpoint))?;
        let engine = Docker::connect().context("connecting to Docker")?;
        engine.ping().await.context("Docker does not answer; `solverd doctor` tells more")?;
        let bounds = settings.bounds(&engine.machine().await?);
        let wake = Wake::default();
        let dispatcher = Dispatcher::start(
            db.clone(),
            objects.clone(),
            engine,
            data_dir.join("work"),
            instance,
            settings.instance_timeout(),
            settings.limits(),
            bounds,
            wake.clone(),
            Webhooks::new(settings.webhook_private_addresses, settings.webhook_pauses.clone())?,
        )
        .await?;
        // Last, because a secret that is shown once must not be lost to a start that fails.
        let first_user = first_user(settings, &db).await?;
        let public_url =
            settings.public_url.as_ref().map(|url| url.trim_end_matches('/').to_owned());
        Ok(Self {
            listener,
            address,
            public_url,
            db,
            objects,
            storage,
            dispatcher,
            rules: Rules::new(bounds, settings.webhook_private_addresses),
            wake,
            first_user,
            lock,
        })
    }

    /// Where the API is served.
    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    /// The user that was made because there was none, with the only copy of the secret.
    pub fn first_user(&self) -> Option<&(String, Credentials)> {
        self.first_user.as_ref()
    }

    /// Serves until `shutdown`; then ends what runs and closes everything.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            listener, public_url, db, objects, storage, dispatcher, rules, wake, lock, ..
        } = self;
        let rules = Data::new(rules);
        let logs = dispatcher.logs();
        let dispatching = Data::new(dispatcher.clone());
        let uploads = Data::new(Uploads::new(db.clone(), objects.clone()));
        let uploading = uploads.clone();
        let (pool, storing) = (db.clone(), objects.clone());
        let closing = Data::new(shutdown.clone());
        let in_flight = Data::new(InFlight::default());
        let document = openapi::document();
        let server = HttpServer::new(move || {
            let app = actix_web::App::new()
                .into_utoipa_app()
                .app_data(Data::new(db.clone()))
                .app_data(Data::new(objects.clone()))
                .app_data(Data::new(wake.clone()))
                .app_data(Data::new(logs.clone()))
                .app_data(dispatching.clone())
                .app_data(uploads.clone())
                .app_data(rules.clone())
                .app_data(closing.clone())
                .app_data(in_flight.clone())
                .app_data(PublicUrl(public_url.clone()))
                .app_data(PayloadConfig::new(BODY_LIMIT))
                .configure(routes::routes)
                .into_app();
            app.wrap(from_fn(limit))
                .wrap(from_fn(authenticate))
                .route("/health", web::get().to(meta::health))
                .route("/state", web::get().to(meta::state))
                .route("/v0/", web::get().to(meta::alive))
                .route("/", web::get().to(to_docs))
                .route("/docs", web::get().to(to_docs))
                .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", document.clone()))
                .route("/openapi-3.0.json", web::get().to(openapi::version_3_0))
                .default_service(web::to(default_route))
        })
        .disable_signals()
        .max_connections(CONNECTIONS)
        .client_request_timeout(HEAD_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        // Else a client that has gone away would hold its stream until something is to be sent.
        .h1_allow_half_closed(false)
        .shutdown_timeout(5)
        .listen(listener)?
        .run();
        let handle = server.handle();
        let stopped = async {
            shutdown.cancelled().await;
            handle.stop(true).await;
        };
        let (served, (), ()) = tokio::join!(server, stopped, dispatcher.run(shutdown.clone()));
        uploading.finish().await;
        storing.finish().await;
        pool.close().await;
        if let Some(storage) = storage {
            storage.shutdown.cancel();
            storage.served.await?;
        }
        drop(lock);
        Ok(served?)
    }
}

async fn to_docs() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/docs/")).finish()
}

/// Opens the database, also for the commands that work beside a running service.
pub async fn open_db(settings: &Settings) -> anyhow::Result<Db> {
    let url = settings.database_url();
    if settings.database_url.is_none() {
        make_data_dir(&settings.data_dir)?;
    }
    // Without the address: it may hold a password.
    Db::open(&url).await.context("opening the database (setting `database-url`)")
}

/// The data folder as an absolute path: Docker mounts the jobs' folders from it.
pub fn make_data_dir(path: &Path) -> anyhow::Result<PathBuf> {
    let doing = || format!("making the data folder {} (setting `data-dir`)", path.display());
    // Everybody's files and the hashes of all secrets are below it.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(doing)?;
    path.canonicalize().with_context(doing)
}

/// This instance's name, kept with its data: by it a later life finds its containers and jobs. The file is locked as long as it is kept
/// open: two services on one data folder would end each other's jobs.
fn instance(data_dir: &Path) -> anyhow::Result<(String, File)> {
    let path = data_dir.join("instance");
    let doing = || format!("keeping {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(doing)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another solverd serves the data folder {} (setting `data-dir`)",
                data_dir.display()
            )
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(doing),
    }
    let mut name = String::new();
    file.read_to_string(&mut name).with_context(doing)?;
    if name.trim().is_empty() {
        name = Uuid::now_v7().to_string();
        writeln!(file, "{name}").with_context(doing)?;
    }
    Ok((name.trim().to_owned(), file))
}

/// Makes the user that the settings name, or, when there is nobody at all, one whose secret is shown once.
async fn first_user(settings: &Settings, db: &Db) -> anyhow::Result<Option<(String, Credentials)>> {
    if let Some(email) = &settings.bootstrap_email {
        let (Some(key), Some(secret)) = (&settings.bootstrap_key, &settings.bootstrap_secret)
        else {
            bail!("setting `bootstrap-email` needs `bootstrap-key` and `bootstrap-secret`");
        };
        check_key(key).map_err(|rule| anyhow!("setting `bootstrap-key` {rule}"))?;
        let email =
            parse_email(email).map_err(|error| anyhow!("setting `bootstrap-email`: {error}"))?;
        let user = match db.user_by_email(&email).await {
            Err(store::Error::NotFound { .. }) => db.user_add(&email, now()).await?,
            found => found?,
        };
        let credentials = Credentials { key: key.clone(), secret: secret.expose().to_owned() };
        match db.key_find(key).await? {
            None => db.key_add(&user, &credentials, now()).await?,
            Some((hash, owner)) if owner == user && hash == secret_hash(&credentials.secret) => {}
            Some(_) => bail!(
                "setting `bootstrap-key`: the key exists, with another secret or for another user"
            ),
        }
        return Ok(None);
    }
    if db.user_any().await? {
        return Ok(None);
    }
    let user = db.user_add("admin@localhost", now()).await?;
    let credentials = Credentials::random()?;
    db.key_add(&user, &credentials, now()).await?;
    Ok(Some((user.email, credentials)))
}

/// The object store at an endpoint, as the other settings describe it.
fn location(
    settings: &Settings,
    endpoint: String,
    access_key_id: String,
    secret_access_key: Secret,
) -> Location {
    Location {
        public_endpoint: settings.s3_public_endpoint.clone().unwrap_or_else(|| endpoint.clone()),
        endpoint,
        bucket: settings.s3_bucket.clone(),
        region: settings.s3_region.clone(),
        access_key_id,
        secret_access_key,
    }
}

/// The object store that the settings name; `None` if it is to be our own.
pub fn external_storage(settings: &Settings) -> anyhow::Result<Option<Location>> {
    let Some(endpoint) = &settings.s3_endpoint else { return Ok(None) };
    let missing = |name| anyhow!("setting `{name}` is needed with `s3-endpoint`");
    let id = settings.s3_access_key_id.clone().ok_or_else(|| missing("s3-access-key-id"))?;
    let secret =
        settings.s3_secret_access_key.clone().ok_or_else(|| missing("s3-secret-access-key"))?;
    Ok(Some(location(settings, endpoint.clone(), id, secret)))
}

/// The object store that the settings name, or our own, served from now on.
async fn storage(settings: &Settings) -> anyhow::Result<(Location, Option<Storage>)> {
    if let Some(external) = external_storage(settings)? {
        return Ok((external, None));
    }
    let listener = tokio::net::TcpListener::bind(settings.s3_listen)
        .await
        .with_context(|| format!("listening on {} (setting `s3-listen`)", settings.s3_listen))?;
    let endpoint = format!("http://{}", reachable(listener.local_addr()?));
    let credentials = embedded::credentials(&settings.data_dir)?;
    let embedded = Embedded::open(&settings.data_dir.join("objects"), &credentials)?;
    let shutdown = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "one task, kept by its handle")]
    let served = tokio::spawn(embedded.run(listener, shutdown.clone()));
    let location =
        location(settings, endpoint, credentials.access_key_id, credentials.secret_access_key);
    Ok((location, Some(Storage { served, shutdown })))
}

/// An address to connect to: one that listens everywhere is reached at the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        (Ipv4Addr::LOCALHOST, address.port()).into()
    } else {
        address
    }
}
