//! Which queued job is next, and whether there is room for it: pure, so that fairness can be tested without a machine.
//!
//! The next job is that of the owner whose running jobs have the smallest share of the machine (dominant resource fairness); of owners
//! with equal shares, that of the one whose last turn is longest ago: where the machine holds one job at a time, all shares are always
//! equal. Of each owner's own jobs it is the oldest. The first one that there is no room for has what it needs set aside: another passes
//! it only if it can run beside it, so what passes never makes it wait longer, and a large job does not wait for ever. Nobody knows how
//! long a job will run, so more cannot be promised.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt, mem,
};

use crate::domain::{
    id::{JobId, UserId},
    job::Job,
    resources::{Bounds, Excess, Held, Kind, OverLimit, Resources},
    time::Timestamp,
};

/// What a job that is being worked on holds of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) resources: Resources,
    /// The job that waited for room when this one passed it.
    pub(super) passed: Option<JobId>,
}

impl Hold {
    /// That of a job that is only being finished, or whose steps do the work.
    pub(super) const NOTHING: Self = Self { resources: Resources::NOTHING, passed: None };

    /// That of a job whose container runs.
    pub(super) const fn of(resources: Resources) -> Self {
        Self { resources, passed: None }
    }
}

/// The indices of as many GPUs as are asked for, of those that nobody has.
pub(super) fn free_gpus<'g>(taken: impl Iterator<Item = &'g u32>, asked: i64) -> Vec<u32> {
    let taken: HashSet<_> = taken.copied().collect();
    (0..asked).zip((0..).filter(|gpu| !taken.contains(gpu))).map(|(_, gpu)| gpu).collect()
}

/// What becomes of a job whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is room.
    Start(Hold),
    /// There is none now, nor is it the turn of what its owner has behind it.
    Wait(Wait),
    /// There never will be.
    Never(Excess),
}

/// Why a job has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// The machine has no room.
    Room { kind: Kind, asked: i64, machine: i64, free: i64, running: usize },
    /// It would take the room that is set aside for another.
    Behind,
    /// Its owner's limits.
    Limit(OverLimit),
}

impl Wait {
    /// Whether both have the same cause, though the figures may be others.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let kind = |wait: &Self| match wait {
            Self::Room { kind, .. } | Self::Limit(OverLimit::Resources { kind, .. }) => Some(*kind),
            Self::Behind | Self::Limit(OverLimit::Jobs { .. }) => None,
        };
        mem::discriminant(self) == mem::discriminant(other) && kind(self) == kind(other)
    }

    /// What is so just now, for the log.
    pub(super) fn figures(&self) -> Option<String> {
        let Self::Room { kind, free, running, .. } = self else { return None };
        Some(format!("{} free, jobs that run: {running}", kind.amount(*free)))
    }
}

/// What stays true as long as the job waits for this.
impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room { kind, asked, machine, .. } => write!(
                f,
                "it asks for {}, and of the machine's {} the running jobs leave less",
                kind.amount(*asked),
                kind.amount(*machine)
            ),
            Self::Behind => f.write_str(
                "a job whose turn is before it waits for room, and this one would take it",
            ),
            Self::Limit(limit) => limit.fmt(f),
        }
    }
}

/// What is remembered from step to step.
#[derive(Default)]
pub(super) struct Memory {
    /// When each owner last had a turn, as a number that rises.
    pub(super) turns: HashMap<UserId, u64>,
    /// What was said of the jobs that wait.
    pub(super) waiting: HashMap<JobId, Told>,
}

/// Why a job waits, as was said of it; the last cause last.
#[derive(Clone, Default)]
pub(super) struct Told(Vec<Wait>);

impl Told {
    /// Whether a cause is said for the first time; `None` if it still is the last one.
    pub(super) fn news(&mut self, wait: Wait) -> Option<bool> {
        let known = self.0.iter().position(|told| told.is_like(&wait));
        if known.is_some_and(|known| known + 1 == self.0.len()) {
            return None;
        }
        known.map(|known| self.0.remove(known));
        self.0.push(wait);
        Some(known.is_none())
    }
}

/// The queue as one step of the dispatcher sees it: at most one job of each owner at a time.
pub(super) struct Admission<'m> {
    turns: &'m mut HashMap<UserId, u64>,
    bounds: Bounds,
    /// What is free of the machine.
    free: Resources,
    running: usize,
    /// What passed which waiting job, and still runs.
    passed: HashMap<JobId, Resources>,
    owners: HashMap<UserId, Held>,
    queue: BTreeMap<Turn, Job>,
    ahead: Option<Ahead>,
}

/// Bits of the owner's share, which sort like the share because it is not negative; the owner's last turn; age.
type Turn = (u64, u64, Option<Timestamp>, JobId);

/// The first job that there is no room for.
struct Ahead {
    id: JobId,
    /// What others may have beside it.
    beside: Resources,
}

impl<'m> Admission<'m> {
    /// An empty queue, before a machine on which these are held, by owners who hold these on all machines.
    pub(super) fn new(
        turns: &'m mut HashMap<UserId, u64>,
        bounds: Bounds,
        holds: impl Iterator<Item = Hold>,
        owners: HashMap<UserId, Held>,
    ) -> Self {
        let mut admission = Self {
            turns,
            bounds,
            free: bounds.machine,
            running: 0,
            passed: HashMap::new(),
            owners,
            queue: BTreeMap::new(),
            ahead: None,
        };
        for hold in holds {
            admission.hold(hold);
        }
        admission
    }

    /// Queues an owner's oldest job.
    pub(super) fn push(&mut self, job: Job) {
        let share = self.held(job.owner).resources.share_of(self.bounds.machine);
        let turn = self.turns.get(&job.owner).copied().unwrap_or_default();
        self.queue.insert((share.to_bits(), turn, job.submitted_at, job.id), job);
    }

    /// The job whose turn it is, and what becomes of it. What its owner has behind it is to be queued when it has left the queue.
    pub(super) fn next(&mut self) -> Option<(Job, Verdict)> {
        let (_, job) = self.queue.pop_first()?;
        let verdict = self.judge(&job);
        Some((job, verdict))
    }

    /// A job was started.
    pub(super) fn started(&mut self, owner: UserId, hold: Hold) {
        self.hold(hold);
        let held = self.held(owner);
        let held = Held { jobs: held.jobs + 1, resources: held.resources + hold.resources };
        self.owners.insert(owner, held);
        let last = self.turns.values().max().copied().unwrap_or_default();
        self.turns.insert(owner, last + 1);
        if let Some(ahead) = &mut self.ahead {
            ahead.beside = ahead.beside - hold.resources;
        }
    }

    fn judge(&mut self, job: &Job) -> Verdict {
        let asked = job.resources;
        if let Some(excess) = self.bounds.excesses(asked).next() {
            return Verdict::Never(excess);
        }
        if let Some(limit) = self.bounds.owner.refuse(self.held(job.owner), asked) {
            return Verdict::Wait(Wait::Limit(limit));
        }
        if let Some(kind) = asked.lack(self.free) {
            let left = self.bounds.machine - asked;
            let passed = self.passed.get(&job.id).copied().unwrap_or(Resources::NOTHING);
            self.ahead.get_or_insert(Ahead { id: job.id, beside: left - passed });
            return Verdict::Wait(Wait::Room {
                kind,
                asked: asked.of(kind),
                machine: self.bounds.machine.of(kind),
                free: self.free.of(kind),
                running: self.running,
            });
        }
        let ahead = self.ahead.as_ref();
        if ahead.is_some_and(|ahead| asked.lack(ahead.beside).is_some()) {
            return Verdict::Wait(Wait::Behind);
        }
        Verdict::Start(Hold { passed: ahead.map(|ahead| ahead.id), ..Hold::of(asked) })
    }

    fn held(&self, owner: UserId) -> Held {
        self.owners.get(&owner).copied().unwrap_or_default()
    }

    fn hold(&mut self, hold: Hold) {
        self.free = self.free - hold.resources;
        self.running += usize::from(hold.resources != Resources::NOTHING);
        if let Some(id) = hold.passed {
            let passed = self.passed.entry(id).or_insert(Resources::NOTHING);
            *passed = *passed + hold.resources;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::TimeDelta;

    use super::*;
    use crate::domain::{
        job::JobState,
        resources::{Amounts, OwnerLimits},
        solver::SolverKey,
        time::now,
    };

    const ADA: UserId = UserId(1);
    const BOB: UserId = UserId(2);
    const CYD: UserId = UserId(3);

    const fn of(nano_cpus: i64, memory_bytes: i64, gpus: i64) -> Resources {
        Resources { nano_cpus, memory_bytes, gpus }
    }

    /// Billionths of a CPU, so that messages read well.
    const CPU: i64 = 1_000_000_000;

    /// A machine, what runs on it, and a queue in the order of submission.
    struct World {
        bounds: Bounds,
        begin: Timestamp,
        submitted: i64,
        queue: Vec<Job>,
        running: Vec<(Job, Hold)>,
        turns: HashMap<UserId, u64>,
    }

    impl World {
        fn new(machine: Resources, owner: OwnerLimits) -> Self {
            Self {
                bounds: Bounds { machine, owner },
                begin: now(),
                submitted: 0,
                queue: Vec::new(),
                running: Vec::new(),
                turns: HashMap::new(),
            }
        }

        fn submit(&mut self, owner: UserId, resources: Resources) -> JobId {
            let key = SolverKey::parse("simcore/services/comp/aa").unwrap();
            self.submitted += 1;
            let job = Job {
                resources,
                state: JobState::Published,
                submitted_at: Some(self.begin + TimeDelta::seconds(self.submitted)),
                ..Job::new(owner, key, "1.0.0".into(), String::new(), self.begin)
            };
            self.queue.push(job.clone());
            job.id
        }

        fn end(&mut self, id: JobId) {
            self.running.retain(|(job, _)| job.id != id);
        }

        /// What the dispatcher does in one step; gives what it started, in order, and what the others were told.
        fn step(&mut self) -> (Vec<JobId>, HashMap<JobId, Wait>) {
            let mut owners = HashMap::<UserId, Held>::new();
            for (job, hold) in &self.running {
                let held = owners.entry(job.owner).or_default();
                (held.jobs, held.resources) = (held.jobs + 1, held.resources + hold.resources);
            }
            let mut admission = Admission::new(
                &mut self.turns,
                self.bounds,
                self.running.iter().map(|it| it.1),
                owners,
            );
            let (mut started, mut waiting) = (Vec::new(), HashMap::new());
            let head = |queue: &[Job], owner| queue.iter().find(|job| job.owner == owner).cloned();
            let owners: BTreeSet<_> = self.queue.iter().map(|job| job.owner.0).collect();
            for owner in owners {
                admission.push(head(&self.queue, UserId(owner)).unwrap());
            }
            while let Some((job, verdict)) = admission.next() {
                match verdict {
                    Verdict::Start(hold) => {
                        admission.started(job.owner, hold);
                        started.push(job.id);
                        self.running.push((job.clone(), hold));
                    }
                    Verdict::Wait(wait) => {
                        waiting.insert(job.id, wait);
                        continue;
                    }
                    Verdict::Never(excess) => panic!("{excess}"),
                }
                self.queue.retain(|queued| queued.id != job.id);
                if let Some(next) = head(&self.queue, job.owner) {
                    admission.push(next);
                }
            }
            let held = self.running.iter().fold(Resources::NOTHING, |sum, it| sum + it.1.resources);
            assert_eq!(held.lack(self.bounds.machine), None, "{held:?}");
            (started, waiting)
        }
    }

    fn world(machine: Resources) -> World {
        World::new(machine, OwnerLimits::default())
    }

    #[test]
    fn ten_thousand_jobs_of_one_owner_do_not_starve_the_first_of_another() {
        let mut world = world(of(2, 2, 0));
        let one = of(1, 1, 0);
        let many: Vec<_> = (0..10_000).map(|_| world.submit(ADA, one)).collect();
        assert_eq!(world.step().0, many[..2], "an owner's own jobs in the order of submission");
        let (first, second) = (world.submit(BOB, one), world.submit(BOB, one));
        assert_eq!(world.step().0, []);
        world.end(many[0]);
        assert_eq!(world.step().0, [first]);
        // Now both have one.
        world.end(first);
        assert_eq!(world.step().0, [second]);
        world.end(many[1]);
        assert_eq!(world.step().0, [many[2]]);
        world.end(second);
        assert_eq!(world.step().0, [many[3]]);
    }

    #[test]
    fn owners_take_turns_where_there_is_room_for_one() {
        let mut world = world(of(1, 1, 0));
        let one = of(1, 1, 0);
        let adas: Vec<_> = (0..3).map(|_| world.submit(ADA, one)).collect();
        assert_eq!(world.step().0, adas[..1]);
        let bobs: Vec<_> = (0..2).map(|_| world.submit(BOB, one)).collect();
        let cyds = world.submit(CYD, one);
        let mut last = adas[0];
        for next in [bobs[0], cyds, adas[1], bobs[1], adas[2]] {
            world.end(last);
            assert_eq!(world.step().0, [next]);
            last = next;
        }
    }

    #[test]
    fn the_smallest_dominant_share_goes_first() {
        // Ada's one job takes half of the memory, Bob's three take a third of the CPUs.
        let mut world = world(of(9, 100, 0));
        world.submit(ADA, of(1, 50, 0));
        for _ in 0..3 {
            world.submit(BOB, of(1, 1, 0));
        }
        assert_eq!(world.step().0.len(), 4);
        let (ada, bob) = (world.submit(ADA, of(1, 1, 0)), world.submit(BOB, of(1, 1, 0)));
        let new = world.submit(CYD, of(1, 1, 0));
        assert_eq!(world.step().0, [new, bob, ada]);
    }

    #[test]
    fn a_stream_of_small_jobs_does_not_starve_a_large_one() {
        let mut world = world(of(4, 4, 0));
        let small = of(1, 1, 0);
        let mut stream: Vec<_> = (0..4).map(|_| world.submit(BOB, small)).collect();
        assert_eq!(world.step().0, stream);
        let large = world.submit(ADA, of(4, 1, 0));
        // As each of those that ran ends, there is room for another small one; but none takes it.
        for ended in 0..3 {
            stream.push(world.submit(BOB, small));
            stream.push(world.submit(CYD, small));
            world.end(stream[ended]);
            let (started, waiting) = world.step();
            assert_eq!(started, []);
            assert!(matches!(waiting[&large], Wait::Room { kind: Kind::Cpus, .. }), "{waiting:?}");
            assert_eq!(waiting.values().filter(|wait| **wait == Wait::Behind).count(), 2);
        }
        world.end(stream[3]);
        assert_eq!(world.step().0, [large]);
    }

    #[test]
    fn what_leaves_room_for_a_waiting_job_passes_it() {
        let mut world = world(of(8, 8, 0));
        let long = world.submit(BOB, of(5, 1, 0));
        assert_eq!(world.step().0, [long]);
        let large = world.submit(ADA, of(6, 1, 0));
        // Beside six of the eight CPUs there are two, whatever is free now.
        let passing: Vec<_> = (0..3).map(|_| world.submit(CYD, of(1, 1, 0))).collect();
        let (started, waiting) = world.step();
        assert_eq!(started, passing[..2]);
        assert_eq!(waiting[&passing[2]], Wait::Behind);
        // That they have passed is remembered as long as they run.
        assert_eq!(world.step().0, []);
        world.end(passing[0]);
        assert_eq!(world.step().0, [passing[2]]);
        world.end(long);
        assert_eq!(world.step().0, [large], "what passed has not delayed it");
    }

    #[test]
    fn a_job_that_waits_for_a_gpu_lets_others_pass() {
        let mut world = world(of(4, 4, 1));
        let first = world.submit(CYD, of(1, 1, 1));
        assert_eq!(world.step().0, [first]);
        let second = world.submit(ADA, of(1, 1, 1));
        let others: Vec<_> = (0..4).map(|_| world.submit(BOB, of(1, 1, 0))).collect();
        let (started, waiting) = world.step();
        assert_eq!(started, others[..3], "beside the one CPU that it needs there are three");
        assert!(matches!(waiting[&second], Wait::Room { kind: Kind::Gpus, .. }), "{waiting:?}");
        world.end(first);
        assert_eq!(world.step().0, [second]);
    }

    #[test]
    fn every_gpu_is_held_once() {
        assert_eq!(free_gpus([0, 3, 1].iter(), 3), [2, 4, 5]);
        assert_eq!(free_gpus([0].iter(), 0), [] as [u32; 0]);
        assert_eq!(free_gpus([].iter(), 1), [0]);
    }

    #[test]
    fn an_owner_at_the_limit_waits_and_holds_up_nobody() {
        let limits = OwnerLimits {
            jobs: Some(2),
            resources: Amounts { nano_cpus: Some(3 * CPU), ..Amounts::default() },
            queued: None,
        };
        let mut world = World::new(of(8 * CPU, 8, 0), limits);
        let first = world.submit(ADA, of(2 * CPU, 1, 0));
        let second = world.submit(ADA, of(2 * CPU, 1, 0));
        let bobs: Vec<_> = (0..3).map(|_| world.submit(BOB, of(CPU, 1, 0))).collect();
        let (started, waiting) = world.step();
        assert_eq!(started, [first, bobs[0], bobs[1]]);
        let told = |id| waiting[id].to_string();
        assert_eq!(
            told(&second),
            "it asks for 2 CPU, and of the 3 CPU that its owner may have at once the running jobs leave less"
        );
        assert_eq!(told(&bobs[2]), "as many of its owner's jobs run as may at once: 2");
    }

    #[test]
    fn a_reason_is_told_again_only_when_its_cause_is_another() {
        let room =
            |kind, free| Wait::Room { kind, asked: 2 * CPU, machine: 2 * CPU, free, running: 3 };
        let cpus = room(Kind::Cpus, CPU / 2);
        assert!(cpus.is_like(&room(Kind::Cpus, 0)));
        let limit = |kind| Wait::Limit(OverLimit::Resources { kind, asked: 2, most: 1 });
        let jobs = Wait::Limit(OverLimit::Jobs { most: 1 });
        let causes =
            [cpus, room(Kind::Gpus, 0), Wait::Behind, limit(Kind::Cpus), limit(Kind::Memory), jobs];
        let mut told = Told::default();
        let mut news = |wait| told.news(wait);
        assert_eq!(
            [cpus, cpus, Wait::Behind, cpus, Wait::Behind].map(&mut news),
            [Some(true), None, Some(true), Some(false), Some(false)]
        );
        for (at, cause) in causes.iter().enumerate() {
            let like: Vec<_> = causes.iter().map(|other| cause.is_like(other)).collect();
            assert_eq!(like.iter().position(|it| *it), Some(at), "{cause:?}");
            assert_eq!(like.iter().filter(|it| **it).count(), 1, "{cause:?}");
        }
        assert_eq!(
            format!("{cpus} ({})", cpus.figures().unwrap()),
            "it asks for 2 CPU, and of the machine's 2 CPU the running jobs leave less (0.5 CPU free, jobs that run: 3)"
        );
    }
}
