//! `solverd doctor`: checks what the service needs, and says how to mend what is wrong.

use std::{io::Write, net::SocketAddr, time::Duration};

use anyhow::bail;
use solverd::{
    app::{external_storage, make_data_dir, open_db},
    objects::Objects,
    settings::Settings,
};
use solverd_runner::engine::Docker;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// One thing that was looked at: what was found, or what is wrong and how to mend it.
type Finding = (&'static str, Result<String, (String, &'static str)>);

/// Prints the findings; fails if anything is wrong.
pub(crate) async fn run(settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let running = is_solverd(settings.listen).await;
    let findings = [
        docker(settings).await,
        folders(settings).await,
        database(settings).await,
        port(
            "API port",
            settings.listen,
            running,
            "free it, or give another address with `listen`",
        ),
        object_store(settings, running).await,
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

async fn docker(settings: &Settings) -> Finding {
    let machine = async { Docker::connect()?.machine().await };
    let found = machine.await.map(|machine| {
        let all = settings.bounds(&machine).machine;
        let (cpus, mib) = (all.nano_cpus / 1_000_000_000, all.memory_bytes >> 20);
        format!("version {}, {cpus} CPUs, {mib} MiB, {} GPUs", machine.version, all.gpus)
    });
    let remedy = "install and start Docker; your user must be in the group `docker`, and DOCKER_HOST must be right if it is set";
    ("Docker", found.map_err(|error| (error.to_string(), remedy)))
}

/// The engine mounts jobs' folders by their path, which must be the same where the engine runs.
async fn folders(settings: &Settings) -> Finding {
    let seen = async {
        let folder = make_data_dir(&settings.data_dir)?;
        let probe = tempfile::NamedTempFile::new_in(&folder)?;
        let token = uuid::Uuid::now_v7().to_string();
        std::fs::write(probe.path(), &token)?;
        let name = probe.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let seen = Docker::connect()?.sees(&folder, &name, token.as_bytes()).await?;
        anyhow::Ok((folder.display().to_string(), seen))
    };
    let remedy = "the data folder must be there under the same path where Docker runs: if solverd is itself in a container, mount it \
                  under that path, as docker-compose.yml does; if Docker is on another machine, jobs cannot run there";
    let finding = match seen.await {
        Ok((folder, true)) => Ok(format!("a container sees what is in {folder}")),
        Ok((folder, false)) => {
            Err((format!("a container does not see what is in {folder}"), remedy))
        }
        Err(error) => Err((format!("{error:#}"), "look at the setting `data-dir`, and at Docker")),
    };
    ("Jobs' folders", finding)
}

async fn database(settings: &Settings) -> Finding {
    let kind = if settings.database_url().starts_with("sqlite:") { "SQLite" } else { "Postgres" };
    let opened = async { anyhow::Ok(open_db(settings).await?.ping().await?) }.await;
    let remedy = "look at the settings `data-dir` and `database-url`";
    (
        "Database",
        opened.map(|()| format!("{kind} answers")).map_err(|error| (format!("{error:#}"), remedy)),
    )
}

async fn object_store(settings: &Settings, running: bool) -> Finding {
    let connected = async {
        let Some(location) = external_storage(settings)? else { return Ok(None) };
        Objects::connect(&location).await?;
        anyhow::Ok(Some(location.endpoint))
    };
    match connected.await {
        Ok(None) => {
            let remedy = "free it, or give another address with `s3-listen`";
            port("Object store port", settings.s3_listen, running, remedy)
        }
        Ok(Some(endpoint)) => ("Object store", Ok(format!("{endpoint} answers"))),
        Err(error) => (
            "Object store",
            Err((format!("{error:#}"), "look at the settings that begin with `s3-`")),
        ),
    }
}

/// A port must be free, unless a solverd that runs has it already.
fn port(what: &'static str, address: SocketAddr, running: bool, remedy: &'static str) -> Finding {
    let finding = match std::net::TcpListener::bind(address) {
        Ok(_) => Ok(format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && running => {
            Ok(format!("{address} is taken by a solverd that runs"))
        }
        Err(error) => Err((format!("{address}: {error}"), remedy)),
    };
    (what, finding)
}

/// Whether a solverd answers at this address.
async fn is_solverd(address: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(1000).read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    matches!(timeout(Duration::from_secs(2), asked).await, Ok(Ok(answer)) if answer.contains("solverd"))
}
