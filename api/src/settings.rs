//! Settings. A flag, an environment variable and a key of the configuration file are one and the same name, and override each other
//! in that order.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Command, value_parser};
use solverd_runner::{engine::Machine, task::Limits};

use crate::{
    domain::resources::{Amounts, Bounds, OwnerLimits, Resources},
    objects::Secret,
};

/// What every command reads.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// TOML file with settings; keys are the flags' names.
    #[arg(long, env = "SOLVERD_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address the API listens on; port 0 takes any free one.
    #[arg(
        long,
        env = "SOLVERD_LISTEN",
        global = true,
        default_value = "127.0.0.1:8000",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,

    /// Where clients reach the API, if not at the address it listens on (behind a proxy).
    #[arg(long, env = "SOLVERD_PUBLIC_URL", global = true, value_name = "URL")]
    pub public_url: Option<String>,

    /// Folder for the embedded database, the embedded object store and the jobs' folders.
    #[arg(
        long,
        env = "SOLVERD_DATA_DIR",
        global = true,
        default_value = "./data",
        value_name = "FOLDER"
    )]
    pub data_dir: PathBuf,

    /// `sqlite:PATH` or `postgres://…`; an SQLite file in the data folder if not given.
    #[arg(
        long,
        env = "SOLVERD_DATABASE_URL",
        global = true,
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: Option<String>,

    /// Address the embedded S3 endpoint listens on.
    #[arg(
        long,
        env = "SOLVERD_S3_LISTEN",
        global = true,
        default_value = "127.0.0.1:9000",
        value_name = "ADDRESS"
    )]
    pub s3_listen: SocketAddr,

    /// S3 endpoint to use instead of the embedded one.
    #[arg(long, env = "SOLVERD_S3_ENDPOINT", global = true, value_name = "URL")]
    pub s3_endpoint: Option<String>,

    /// Where clients reach the S3 endpoint, if not where the service does.
    #[arg(long, env = "SOLVERD_S3_PUBLIC_ENDPOINT", global = true, value_name = "URL")]
    pub s3_public_endpoint: Option<String>,

    /// Bucket; made if it is not there.
    #[arg(
        long,
        env = "SOLVERD_S3_BUCKET",
        global = true,
        default_value = "solverd",
        value_name = "NAME"
    )]
    pub s3_bucket: String,

    /// Region of the S3 endpoint.
    #[arg(
        long,
        env = "SOLVERD_S3_REGION",
        global = true,
        default_value = "us-east-1",
        value_name = "NAME"
    )]
    pub s3_region: String,

    /// Access key of the S3 endpoint; not for the embedded one.
    #[arg(long, env = "SOLVERD_S3_ACCESS_KEY_ID", global = true, value_name = "ID")]
    pub s3_access_key_id: Option<String>,

    /// Secret of the S3 access key.
    #[arg(
        long,
        env = "SOLVERD_S3_SECRET_ACCESS_KEY",
        global = true,
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub s3_secret_access_key: Option<Secret>,

    /// GPUs that jobs may use; as many as the engine tells if not given, which is one where it has NVIDIA's runtime.
    #[arg(long, env = "SOLVERD_GPUS", global = true, value_name = "NUMBER")]
    pub gpus: Option<u32>,

    /// Jobs of one owner that may run at once.
    #[arg(long, env = "SOLVERD_OWNER_JOBS", global = true, value_name = "NUMBER", value_parser = value_parser!(i64).range(1..))]
    pub owner_jobs: Option<i64>,

    /// CPUs that the running jobs of one owner may have together, e.g. 1.5.
    #[arg(long, env = "SOLVERD_OWNER_CPUS", global = true, value_name = "CPUS", value_parser = nano_cpus)]
    pub owner_cpus: Option<i64>,

    /// Memory that the running jobs of one owner may have together, in MiB.
    #[arg(long, env = "SOLVERD_OWNER_MEMORY", global = true, value_name = "MIB", value_parser = value_parser!(i64).range(1..1 << 40))]
    pub owner_memory: Option<i64>,

    /// GPUs that the running jobs of one owner may have together.
    #[arg(long, env = "SOLVERD_OWNER_GPUS", global = true, value_name = "NUMBER", value_parser = value_parser!(i64).range(0..))]
    pub owner_gpus: Option<i64>,

    /// Jobs of one owner that may be in the queue; starting another is refused.
    #[arg(long, env = "SOLVERD_OWNER_QUEUED", global = true, value_name = "NUMBER", value_parser = value_parser!(i64).range(1..))]
    pub owner_queued: Option<i64>,

    /// How long a job's image may be pulled, in seconds.
    #[arg(
        long,
        env = "SOLVERD_PULL_LIMIT",
        global = true,
        default_value = "3600",
        value_name = "SECONDS",
        value_parser = value_parser!(u32).range(1..)
    )]
    pub pull_limit: u32,

    /// How long a job's container may run, in seconds; as long as it takes if not given. Solvers may set less.
    #[arg(
        long,
        env = "SOLVERD_WALL_LIMIT",
        global = true,
        value_name = "SECONDS",
        value_parser = value_parser!(u32).range(1..)
    )]
    pub wall_limit: Option<u32>,

    /// How long it may print nothing, in seconds. Solvers may set less.
    #[arg(
        long,
        env = "SOLVERD_SILENCE_LIMIT",
        global = true,
        default_value = "3600",
        value_name = "SECONDS",
        value_parser = value_parser!(u32).range(1..)
    )]
    pub silence_limit: u32,

    /// What it gets between SIGTERM and SIGKILL, in seconds, at most 60. Solvers may set less.
    #[arg(
        long,
        env = "SOLVERD_GRACE",
        global = true,
        default_value = "10",
        value_name = "SECONDS",
        value_parser = value_parser!(u32).range(..=60)
    )]
    pub grace: u32,

    /// How much of a job's log is kept, in MiB, at most 1024: of a longer one the beginning and the end. Solvers may set less.
    #[arg(
        long,
        env = "SOLVERD_LOG_LIMIT",
        global = true,
        default_value = "64",
        value_name = "MIB",
        value_parser = value_parser!(u32).range(1..=1024)
    )]
    pub log_limit: u32,

    /// What a job may have on disk, in MiB: its inputs, its outputs and whatever else its container writes. Solvers may set less.
    #[arg(
        long,
        env = "SOLVERD_DISK_LIMIT",
        global = true,
        default_value = "51200",
        value_name = "MIB",
        value_parser = value_parser!(u32).range(1..)
    )]
    pub disk_limit: u32,

    /// How many files and folders that may be.
    #[arg(
        long,
        env = "SOLVERD_FILES_LIMIT",
        global = true,
        default_value = "1000000",
        value_name = "NUMBER",
        value_parser = value_parser!(u32).range(1..)
    )]
    pub files_limit: u32,

    /// What stays free on the disk, in MiB: when there is less, the job that has most on it is ended.
    #[arg(
        long,
        env = "SOLVERD_DISK_RESERVE",
        global = true,
        default_value = "1024",
        value_name = "MIB"
    )]
    pub disk_reserve: u32,

    /// How long another service on the same database may be silent before its jobs are ended as lost, in seconds, at least 15.
    #[arg(
        long,
        env = "SOLVERD_INSTANCE_TIMEOUT",
        global = true,
        default_value = "300",
        value_name = "SECONDS",
        value_parser = value_parser!(u32).range(15..)
    )]
    pub instance_timeout: u32,

    /// What to log: a level (error, warn, info, debug, trace) or filters like `solverd=debug,sqlx=warn`.
    #[arg(
        long,
        env = "SOLVERD_LOG",
        global = true,
        default_value = "info,actix_server=warn,s3s=warn,s3s_fs=warn,sqlx=warn",
        value_name = "FILTER"
    )]
    pub log: String,

    /// Lets callbacks go to private, loopback and other addresses that are not public.
    #[arg(long, env = "SOLVERD_WEBHOOK_PRIVATE_ADDRESSES", global = true)]
    pub webhook_private_addresses: bool,

    /// Pauses after failed attempts to deliver a callback, in seconds; after the last it is given up.
    #[arg(
        long,
        env = "SOLVERD_WEBHOOK_PAUSES",
        global = true,
        value_delimiter = ',',
        default_value = "5,300,1800,7200,18000,36000,50400,72000,86400",
        value_name = "SECONDS,…"
    )]
    pub webhook_pauses: Vec<u32>,

    /// User to make when the service starts, with the two settings that follow.
    #[arg(long, env = "SOLVERD_BOOTSTRAP_EMAIL", global = true, value_name = "EMAIL")]
    pub bootstrap_email: Option<String>,

    /// API key of that user.
    #[arg(long, env = "SOLVERD_BOOTSTRAP_KEY", global = true, value_name = "KEY")]
    pub bootstrap_key: Option<String>,

    /// Secret of that key.
    #[arg(
        long,
        env = "SOLVERD_BOOTSTRAP_SECRET",
        global = true,
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub bootstrap_secret: Option<Secret>,
}

impl Settings {
    /// Address of the database.
    pub fn database_url(&self) -> String {
        self.database_url.clone().unwrap_or_else(|| {
            // It is read as a URL, in which these two mean something.
            let path = self.data_dir.join("solverd.db").display().to_string();
            format!("sqlite:{}", path.replace('%', "%25").replace('?', "%3F"))
        })
    }

    /// How long another service may be silent before its jobs are ended.
    pub fn instance_timeout(&self) -> Duration {
        Duration::from_secs(self.instance_timeout.into())
    }

    /// What no job may exceed.
    pub fn limits(&self) -> Limits {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let mib = |mib: u32| u64::from(mib) << 20;
        Limits {
            pull: seconds(self.pull_limit),
            wall: self.wall_limit.map(seconds),
            silence: seconds(self.silence_limit),
            grace: seconds(self.grace),
            log_bytes: mib(self.log_limit),
            disk_bytes: mib(self.disk_limit),
            disk_files: self.files_limit.into(),
            disk_reserve: mib(self.disk_reserve),
        }
    }

    /// What jobs may have of a machine.
    pub fn bounds(&self, machine: &Machine) -> Bounds {
        let resources = Amounts {
            nano_cpus: self.owner_cpus,
            memory_bytes: self.owner_memory.map(|mib| mib << 20),
            gpus: self.owner_gpus,
        };
        Bounds {
            machine: Resources {
                nano_cpus: machine.resources.nano_cpus,
                memory_bytes: machine.resources.memory_bytes,
                gpus: self.gpus.unwrap_or(machine.gpus).into(),
            },
            owner: OwnerLimits { jobs: self.owner_jobs, resources, queued: self.owner_queued },
        }
    }
}

/// Reads CPUs, in billionths.
fn nano_cpus(text: &str) -> Result<i64, String> {
    let cpus: f64 = text.parse().map_err(|_| "must be a number of CPUs, e.g. 1.5".to_owned())?;
    if !(0.01..=1e6).contains(&cpus) {
        return Err("must be from 0.01 to 1000000".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is in these bounds")]
    Ok((cpus * 1e9).round() as i64)
}

/// Puts the configuration file's values where the built-in defaults were: clap then lets environment and flags override them.
pub fn with_config_file(command: Command, arguments: &[OsString]) -> anyhow::Result<Command> {
    let early = command.clone().ignore_errors(true).get_matches_from(arguments);
    let Some(path) = early.get_one::<PathBuf>("config") else { return Ok(command) };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("reading {}", path.display()))?;
    table.into_iter().try_fold(command, |command, (key, value)| {
        let id = key.replace('-', "_");
        let known = command
            .get_arguments()
            .any(|argument| argument.get_id() == id.as_str() && id != "config");
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(truth) => truth.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                bail!("{}: `{key}` must be a string, a number or a truth value", path.display())
            }
        };
        if !known {
            bail!("{}: there is no setting `{key}`; `solverd --help` lists them", path.display());
        }
        Ok(command.mut_arg(id, |argument| argument.default_value(value)))
    })
}
