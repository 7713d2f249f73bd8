//! The command line. All commands read the same settings and work beside a running service.

mod doctor;

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use futures_util::TryStreamExt;
use serde_json::json;
use solverd::{
    App,
    app::open_db,
    domain::{
        labels,
        solver::Release,
        steps::Definition,
        time::now,
        usage::seconds,
        user::{Credentials, parse_email},
    },
    openapi,
    settings::{Settings, with_config_file},
    store::{self, Db},
};
use solverd_runner::engine::{Docker, EngineError, Image};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Turns any containerised solver into a typed HTTP API that speaks oSPARC's /v0.
#[derive(Parser)]
#[command(version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API; the first start makes a user and shows its key and secret.
    Serve,
    /// Users.
    #[command(subcommand)]
    Users(Users),
    /// API keys.
    #[command(subcommand)]
    Keys(Keys),
    /// Solvers.
    #[command(subcommand)]
    Solvers(Solvers),
    /// Print the OpenAPI document.
    Openapi,
    /// Check everything the service needs, and say how to mend it.
    Doctor,
}

#[derive(Subcommand)]
enum Users {
    /// Add a user.
    Add { email: String },
    /// Show what a user's jobs have used of the machine, deleted ones included.
    Usage {
        email: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Keys {
    /// Make a key for a user; its secret is shown once.
    Create {
        email: String,
        /// Print JSON: {"key": …, "secret": …}.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key, at once.
    Revoke { key: String },
}

#[derive(Subcommand)]
enum Solvers {
    /// Publish images of the local Docker engine, as their `io.simcore.*` labels describe them, and studies, as files describe them.
    Publish {
        /// An image, or a file with a study, whose name ends in `.json`.
        #[arg(required = true, value_name = "IMAGE|FILE")]
        sources: Vec<String>,
    },
    /// List published releases.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A reader that has gone away (`solverd … | head`) is no failure to shout about.
            let gone = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
            if !error.downcast_ref().is_some_and(gone) {
                let _ = writeln!(io::stderr(), "error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let command = with_config_file(Cli::command(), &arguments)?;
    let Cli { command, settings } = Cli::from_arg_matches(&command.get_matches_from(arguments))?;
    let filter = EnvFilter::try_new(&settings.log).context("setting `log`")?;
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(io::stderr)
        .init();
    let mut out = io::stdout();
    match command {
        Command::Serve => serve(&settings, &mut out).await?,
        Command::Openapi => writeln!(out, "{}", openapi::document().to_pretty_json()?)?,
        Command::Doctor => return doctor::run(&settings, &mut out).await,
        Command::Users(Users::Add { email }) => {
            let email = parse_email(&email).map_err(|error| anyhow!(error))?;
            let user = open_db(&settings).await?.user_add(&email, now()).await?;
            writeln!(
                out,
                "added {}; `solverd keys create {}` makes a key",
                user.email, user.email
            )?;
        }
        Command::Users(Users::Usage { email, json }) => {
            usage(&settings, &email, json, &mut out).await?;
        }
        Command::Keys(Keys::Create { email, json }) => {
            let email = parse_email(&email).map_err(|error| anyhow!(error))?;
            let db = open_db(&settings).await?;
            let user = db.user_by_email(&email).await?;
            let credentials = Credentials::random()?;
            db.key_add(&user, &credentials, now()).await?;
            if json {
                writeln!(out, "{}", serde_json::to_string(&credentials)?)?;
            } else {
                show(&mut out, &credentials)?;
            }
        }
        Command::Keys(Keys::Revoke { key }) => {
            open_db(&settings).await?.key_revoke(&key).await?;
            writeln!(out, "revoked {key}")?;
        }
        Command::Solvers(Solvers::Publish { sources }) => {
            publish(&settings, &sources, &mut out).await?;
        }
        Command::Solvers(Solvers::List { json }) => list(&settings, json, &mut out).await?,
    }
    Ok(())
}

async fn serve(settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let app = App::bind(settings).await?;
    if let Some((email, credentials)) = app.first_user() {
        writeln!(
            out,
            "\nThis is the first start: user {email} was made for you. The secret is shown only now."
        )?;
        show(out, credentials)?;
        writeln!(
            out,
            "\nTry it:\n  curl -u {}:{} {url}/v0/me\nor explore it at {url}/docs/\n",
            credentials.key,
            credentials.secret,
            url = app.url()
        )?;
    }
    // Scripts wait for this line.
    writeln!(out, "solverd ready at {}", app.url())?;
    out.flush()?;
    app.run(shutdown_signal()?).await
}

/// A token that SIGINT and SIGTERM cancel. A second signal ends the process at once.
fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
    tokio::spawn(async move {
        let mut signal = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        signal().await;
        tracing::info!("shutting down");
        token.cancel();
        let first = Instant::now();
        loop {
            signal().await;
            // Shells and `timeout` signal both the process and its group, which makes two of one.
            if first.elapsed() > Duration::from_secs(1) {
                tracing::warn!("second signal: ending at once");
                std::process::exit(1);
            }
        }
    });
    Ok(cancelled)
}

fn show(out: &mut impl Write, credentials: &Credentials) -> io::Result<()> {
    writeln!(out, "  key     {}\n  secret  {}", credentials.key, credentials.secret)
}

async fn usage(
    settings: &Settings,
    email: &str,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let email = parse_email(email).map_err(|error| anyhow!(error))?;
    let db = open_db(settings).await?;
    let total = db.user_usage(db.user_by_email(&email).await?.id).await?;
    let [cpu, reserved, wall] =
        [total.cpu_micros, total.reserved_micros, total.wall_micros].map(seconds);
    if as_json {
        let row = json!({
            "email": email, "jobs": total.jobs, "cpu_seconds": cpu, "cpu_seconds_reserved": reserved, "wall_seconds": wall,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&row)?)?;
    } else {
        writeln!(
            out,
            "{email}: {} jobs ran for {wall:.1} s and used {cpu:.1} CPU-seconds, {reserved:.1} of them by what they reserved",
            total.jobs
        )?;
    }
    Ok(())
}

async fn publish(
    settings: &Settings,
    sources: &[String],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let db = open_db(settings).await?;
    for source in sources {
        let is_file = Path::new(source).extension().is_some_and(|extension| extension == "json");
        let release = if is_file {
            study(source, &db).await.with_context(|| format!("file {source}"))?
        } else {
            let image = image(source, out).await?;
            labels::release(source, &image.id, &image.digests, &image.labels)
                .with_context(|| format!("image {source}"))?
        };
        let is_new = db.release_publish(&release, now()).await?;
        let note = if is_new { "published" } else { "was published already" };
        writeln!(out, "{} {} {note}", release.key, release.version)?;
    }
    Ok(())
}

/// An image that the engine has, or else one that its registry gives.
async fn image(name: &str, out: &mut impl Write) -> anyhow::Result<Image> {
    let engine = Docker::connect()?;
    match engine.image(name).await {
        Err(EngineError::NoImage(_)) => {}
        found => return Ok(found?),
    }
    let mut lines = pin!(engine.pull(name));
    while let Some(line) = lines.try_next().await? {
        writeln!(out, "{line}")?;
    }
    Ok(engine.image(name).await?)
}

/// Reads a study from a file and looks up what its steps name.
async fn study(path: &str, db: &Db) -> anyhow::Result<Release> {
    let definition =
        Definition::parse(&std::fs::read_to_string(path)?).map_err(|error| anyhow!(error))?;
    let mut known = Vec::new();
    for (key, version) in definition.releases() {
        match db.release_get(key, version).await {
            Ok(release) => known.push(release),
            Err(store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    definition.resolve(&known).map_err(|problems| anyhow!(problems.join("\n  ")))
}

async fn list(settings: &Settings, as_json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let releases = open_db(settings).await?.releases_all().await?;
    if as_json {
        let rows: Vec<_> = releases
            .iter()
            .map(|release| json!({"key": release.key, "version": release.version, "title": release.title}))
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
    } else {
        for release in releases {
            writeln!(out, "{} {}  {}", release.key, release.version, release.title)?;
        }
    }
    Ok(())
}
