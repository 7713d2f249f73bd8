//! CPU, memory and GPUs: what a job takes, what a machine has, and how much of it anybody may have.

use std::{
    fmt,
    ops::{Add, Sub},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

/// What there is to be shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Billionths of a CPU.
    Cpus,
    /// Bytes.
    Memory,
    /// Whole GPUs.
    Gpus,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpus, Self::Memory, Self::Gpus];

    /// The field of a request.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Cpus => "cpus",
            Self::Memory => "memory_bytes",
            Self::Gpus => "gpus",
        }
    }

    /// The least that a container can have: what Docker takes.
    pub const fn least(self) -> i64 {
        match self {
            Self::Cpus => 10_000_000,
            Self::Memory => 6 << 20,
            Self::Gpus => 0,
        }
    }

    /// An amount as a request writes it.
    pub fn value(self, amount: i64) -> Json {
        match self {
            Self::Cpus => json!(cpus(amount)),
            Self::Memory | Self::Gpus => json!(amount),
        }
    }

    /// An amount for people.
    pub fn amount(self, amount: i64) -> String {
        match self {
            Self::Cpus => format!("{} CPU", cpus(amount)),
            Self::Memory => format!("{} MiB of memory", amount >> 20),
            Self::Gpus => format!("{amount} GPU"),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn cpus(nano: i64) -> f64 {
    nano as f64 / 1e9
}

/// An amount of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: i64,
}

impl Default for Resources {
    /// One CPU and 1 GiB: oSPARC's fallback for images that declare nothing.
    fn default() -> Self {
        Self { nano_cpus: 1_000_000_000, memory_bytes: 1 << 30, gpus: 0 }
    }
}

impl Resources {
    /// What a job takes that leaves all work to others.
    pub const NOTHING: Self = Self { nano_cpus: 0, memory_bytes: 0, gpus: 0 };

    /// The amount of one kind.
    pub const fn of(self, kind: Kind) -> i64 {
        match kind {
            Kind::Cpus => self.nano_cpus,
            Kind::Memory => self.memory_bytes,
            Kind::Gpus => self.gpus,
        }
    }

    /// What there is too little of for these to be had.
    pub fn lack(self, there: Self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|&kind| self.of(kind) > there.of(kind))
    }

    /// The largest share that these are of what a machine has, of any kind (dominant resource fairness).
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn share_of(self, machine: Self) -> f64 {
        let share = |kind| self.of(kind) as f64 / machine.of(kind).max(1) as f64;
        Kind::ALL.map(share).into_iter().fold(0.0, f64::max)
    }

    /// What of these is more than may be had.
    pub fn excesses(self, most: Amounts, bound: Bound) -> impl Iterator<Item = Excess> {
        Kind::ALL.into_iter().filter_map(move |kind| {
            let (asked, most) = (self.of(kind), most.of(kind)?);
            (asked > most).then_some(Excess { kind, asked, most, bound })
        })
    }
}

impl Add for Resources {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus + other.nano_cpus,
            memory_bytes: self.memory_bytes + other.memory_bytes,
            gpus: self.gpus + other.gpus,
        }
    }
}

impl Sub for Resources {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus - other.nano_cpus,
            memory_bytes: self.memory_bytes - other.memory_bytes,
            gpus: self.gpus - other.gpus,
        }
    }
}

/// An amount of each, or none said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Billionths of a CPU.
    pub nano_cpus: Option<i64>,
    /// Bytes.
    pub memory_bytes: Option<i64>,
    /// Whole GPUs.
    pub gpus: Option<i64>,
}

impl Amounts {
    /// The amount of one kind.
    pub const fn of(self, kind: Kind) -> Option<i64> {
        match kind {
            Kind::Cpus => self.nano_cpus,
            Kind::Memory => self.memory_bytes,
            Kind::Gpus => self.gpus,
        }
    }

    /// These, and where none is said, the others.
    pub fn or(self, others: Resources) -> Resources {
        Resources {
            nano_cpus: self.nano_cpus.unwrap_or(others.nano_cpus),
            memory_bytes: self.memory_bytes.unwrap_or(others.memory_bytes),
            gpus: self.gpus.unwrap_or(others.gpus),
        }
    }
}

impl From<Resources> for Amounts {
    fn from(all: Resources) -> Self {
        let Resources { nano_cpus, memory_bytes, gpus } = all;
        Self { nano_cpus: Some(nano_cpus), memory_bytes: Some(memory_bytes), gpus: Some(gpus) }
    }
}

/// What one owner may have at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Jobs that run, those of steps included.
    pub jobs: Option<i64>,
    /// What these take together.
    pub resources: Amounts,
    /// Jobs in the queue.
    pub queued: Option<i64>,
}

/// What the running jobs of one owner take together, on all services of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Held {
    /// How many there are.
    pub jobs: i64,
    /// What they take.
    #[sqlx(flatten)]
    pub resources: Resources,
}

impl Default for Held {
    fn default() -> Self {
        Self { jobs: 0, resources: Resources::NOTHING }
    }
}

impl OwnerLimits {
    /// Why an owner who holds this may not have a job that takes these beside it.
    pub fn refuse(&self, held: Held, asked: Resources) -> Option<OverLimit> {
        if let Some(most) = self.jobs.filter(|&most| held.jobs >= most) {
            return Some(OverLimit::Jobs { most });
        }
        let both = held.resources + asked;
        let Excess { kind, most, .. } = both.excesses(self.resources, Bound::Owner).next()?;
        Some(OverLimit::Resources { kind, asked: asked.of(kind), most })
    }
}

/// What keeps an owner from having another job run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverLimit {
    /// As many run as may.
    Jobs {
        /// The limit.
        most: i64,
    },
    /// The running ones leave too little.
    Resources {
        /// Of this.
        kind: Kind,
        /// What the job takes.
        asked: i64,
        /// The limit.
        most: i64,
    },
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Jobs { most } => {
                write!(f, "as many of its owner's jobs run as may at once: {most}")
            }
            Self::Resources { kind, asked, most } => write!(
                f,
                "it asks for {}, and of the {} that its owner may have at once the running jobs leave less",
                kind.amount(asked),
                kind.amount(most)
            ),
        }
    }
}

/// What a job may have at all where this service runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// What the machine has.
    pub machine: Resources,
    /// What one owner may have of it.
    pub owner: OwnerLimits,
}

impl Bounds {
    /// Why a job that takes these could never run here.
    pub fn excesses(&self, asked: Resources) -> impl Iterator<Item = Excess> {
        let machine = asked.excesses(self.machine.into(), Bound::Machine);
        machine.chain(asked.excesses(self.owner.resources, Bound::Owner))
    }
}

/// Who does not let a job have more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The solver.
    Solver,
    /// The machine.
    Machine,
    /// What one owner may have.
    Owner,
}

/// More is asked for than may ever be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// Of this.
    pub kind: Kind,
    /// What is asked for.
    pub asked: i64,
    /// What there is at most.
    pub most: i64,
    /// Whose bound that is.
    pub bound: Bound,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = match self.bound {
            Bound::Solver => ", and its solver takes at most",
            Bound::Machine => " and can never have it: this service's machine has",
            Bound::Owner => " and can never have it: one owner may have at most",
        };
        let (asked, most) = (self.kind.amount(self.asked), self.kind.amount(self.most));
        write!(f, "asks for {asked}{bound} {most}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(nano_cpus: i64, memory_bytes: i64, gpus: i64) -> Resources {
        Resources { nano_cpus, memory_bytes, gpus }
    }

    #[test]
    fn a_share_is_that_of_the_scarcest() {
        let machine = of(4, 100, 0);
        let shares = [of(1, 10, 0), of(1, 50, 0), of(0, 0, 0)].map(|it| it.share_of(machine));
        assert!(shares.iter().zip([0.25, 0.5, 0.0]).all(|(a, b)| (a - b).abs() < 1e-9));
    }

    #[test]
    fn what_can_never_be_had_says_why() {
        let owner = OwnerLimits {
            resources: Amounts { memory_bytes: Some(64 << 20), ..Amounts::default() },
            ..OwnerLimits::default()
        };
        let bounds = Bounds { machine: of(2_000_000_000, 128 << 20, 0), owner };
        let why = |asked| bounds.excesses(asked).next().map(|excess| excess.to_string());
        assert_eq!(why(of(2_000_000_000, 64 << 20, 0)), None);
        for (asked, expected) in [
            (
                of(2_500_000_000, 0, 0),
                "asks for 2.5 CPU and can never have it: this service's machine has 2 CPU",
            ),
            (of(0, 0, 1), "asks for 1 GPU and can never have it: this service's machine has 0 GPU"),
            (
                of(0, 65 << 20, 0),
                "asks for 65 MiB of memory and can never have it: one owner may have at most 64 MiB of memory",
            ),
        ] {
            assert_eq!(why(asked).as_deref(), Some(expected));
        }
    }

    #[test]
    fn an_owner_has_no_more_than_the_limits() {
        let limits = OwnerLimits {
            jobs: Some(2),
            resources: Amounts { nano_cpus: Some(3_000_000_000), ..Amounts::default() },
            queued: None,
        };
        let held = |jobs, nano_cpus| Held { jobs, resources: of(nano_cpus, 0, 0) };
        let why = |held, asked| limits.refuse(held, asked).map(|limit| limit.to_string());
        assert_eq!(why(held(1, 1_000_000_000), of(2_000_000_000, 1 << 40, 1)), None);
        assert_eq!(
            why(held(1, 1_500_000_000), of(2_000_000_000, 0, 0)).as_deref(),
            Some(
                "it asks for 2 CPU, and of the 3 CPU that its owner may have at once the running jobs leave less"
            )
        );
        assert_eq!(
            why(held(2, 0), of(0, 0, 0)).as_deref(),
            Some("as many of its owner's jobs run as may at once: 2")
        );
    }
}
