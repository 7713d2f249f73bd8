//! `solverd doctor`: checks what the service needs, and says how to mend what is wrong.

use std::{io::Write, net::SocketAddr};

use anyhow::bail;
use solverd::{app::open_db, settings::Settings};
use solverd_runner::engine::Docker;

/// One thing that was looked at: what was found, or what is wrong and how to mend it.
type Finding = (&'static str, Result<String, (String, &'static str)>);

/// Prints the findings; fails if anything is wrong.
pub(crate) async fn run(settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let findings = [
        docker().await,
        database(settings).await,
        port("API port", settings.listen, "free it, or give another address with `listen`"),
        object_store(settings),
    ];
    for (what, finding) in &findings {
        match finding {
            Ok(found) => writeln!(out, "ok     {what}: {found}")?,
            Err((wrong, remedy)) => writeln!(out, "WRONG  {what}: {wrong}\n       {remedy}")?,
        }
    }
    match findings.iter().filter(|(_, finding)| finding.is_err()).count() {
        0 => Ok(()),
        wrong => bail!("{wrong} of {} checks failed", findings.len()),
    }
}

async fn docker() -> Finding {
    let remedy = "install and start Docker; your user must be in the group `docker`, and DOCKER_HOST must be right if it is set";
    let machine = async { Docker::connect()?.machine().await };
    let found = machine.await.map(|machine| {
        let (cpus, mib) =
            (machine.resources.nano_cpus / 1_000_000_000, machine.resources.memory_bytes >> 20);
        format!("version {}, {cpus} CPUs, {mib} MiB", machine.version)
    });
    ("Docker", found.map_err(|error| (error.to_string(), remedy)))
}

async fn database(settings: &Settings) -> Finding {
    let kind = if settings.database_url().starts_with("sqlite:") { "SQLite" } else { "Postgres" };
    let opened = async { anyhow::Ok(open_db(settings).await?.ping().await?) };
    let remedy = "look at the settings `data-dir` and `database-url`";
    (
        "Database",
        opened
            .await
            .map(|()| format!("{kind} answers"))
            .map_err(|error| (format!("{error:#}"), remedy)),
    )
}

fn object_store(settings: &Settings) -> Finding {
    match &settings.s3_endpoint {
        Some(endpoint) => {
            ("Object store", Ok(format!("set to {endpoint}; `serve` connects to it")))
        }
        None => port(
            "Object store port",
            settings.s3_listen,
            "free it, or give another address with `s3-listen`",
        ),
    }
}

fn port(what: &'static str, address: SocketAddr, remedy: &'static str) -> Finding {
    let free = std::net::TcpListener::bind(address);
    // A service that runs already holds its own ports, and that is as it should be.
    let finding = match free {
        Ok(_) => Ok(format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err((format!("{address} is taken, perhaps by a solverd that runs already"), remedy))
        }
        Err(error) => Err((format!("{address}: {error}"), remedy)),
    };
    (what, finding)
}
