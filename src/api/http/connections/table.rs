//! The table behind [`Connections`](super::Connections): counts places, and chooses who must give theirs up.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Version;
use metrics::{counter, gauge};
use tokio::sync::oneshot;

use super::{Ending, NoPlace};
use crate::config::limits::ConnectionLimits;

/// How long a new connection may take to send its first request. Nothing but a scan or an attack needs longer.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// The protocol of a connection that has not sent a request.
const NEW: &str = "new";

/// The client whom a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// The address that it came from, until it sends a key.
    Address(IpAddr),
    /// Id of the key that its last request had.
    Key(Arc<str>),
}

impl Holder {
    /// Returns the holder of a connection from `address`. Whoever has an IPv6 address has its whole network of 64 bits.
    pub(super) fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from_bits(network).into())
            }
            address @ IpAddr::V4(_) => Self::Address(address),
        }
    }

    fn has_key(&self) -> bool {
        matches!(self, Self::Key(_))
    }
}

/// All open connections, by number.
pub(super) struct Table {
    limits: ConnectionLimits,
    next_id: u64,
    open: HashMap<u64, Entry>,
    by_holder: HashMap<Holder, usize>,
    /// Connections with a running request that is no probe.
    busy: usize,
    /// Running requests.
    running: usize,
}

struct Entry {
    holder: Holder,
    protocol: &'static str,
    /// Running requests.
    running: usize,
    /// Those of them that are no probes.
    working: usize,
    /// When it was accepted, or last began or ended a request.
    since: Instant,
    /// Tells its task to end it; `None` once that was done.
    end: Option<oneshot::Sender<Ending>>,
    /// It was told to end at once.
    displaced: bool,
}

impl Entry {
    /// Returns true if no request runs that has a key.
    fn is_idle(&self) -> bool {
        self.running == 0 || !self.holder.has_key()
    }

    /// Asks the task of the connection to end it, and counts that.
    fn end(&mut self, ending: Ending) {
        let Some(end) = self.end.take() else { return };
        self.displaced = ending == Ending::Displaced;
        let reason = match ending {
            Ending::Idle if self.protocol == NEW => "silent",
            Ending::Idle => "idle",
            Ending::Displaced => "displaced",
        };
        counter!("attune_connections_closed_total", "reason" => reason).increment(1);
        // A task that does not listen any more ends already.
        let _ = end.send(ending);
    }
}

impl Table {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, next_id: 0, open: HashMap::new(), by_holder: HashMap::new(), busy: 0, running: 0 }
    }

    pub(super) fn idle_limit(&self) -> Duration {
        self.limits.idle
    }

    pub(super) fn has_no_requests(&self) -> bool {
        self.running == 0
    }

    pub(super) fn is_idle_for(&self, id: u64, time: Duration) -> bool {
        self.open.get(&id).is_none_or(|entry| entry.is_idle() && entry.since.elapsed() >= time)
    }

    /// Enters a connection; `None` if it must wait for another to end.
    pub(super) fn enter(&mut self, holder: &Holder) -> Option<(u64, oneshot::Receiver<Ending>)> {
        let is_over = self.count_of(holder) >= self.limits.most_of_one;
        if is_over && self.displace_one(|entry| entry.holder == *holder) {
            return None;
        }
        if self.open.len() >= self.limits.most {
            self.displace_one(|_| true);
            return None;
        }
        let (end, ended) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        *self.by_holder.entry(holder.clone()).or_default() += 1;
        let (holder, end, since) = (holder.clone(), Some(end), Instant::now());
        let entry = Entry { holder, protocol: NEW, running: 0, working: 0, since, end, displaced: false };
        self.open.insert(id, entry);
        count_open(NEW, 1.0);
        Some((id, ended))
    }

    /// Ends the connection that can be missed the most.
    pub(super) fn make_room(&mut self) {
        self.displace(|_| true);
    }

    /// Ends the connections that have been idle for too long at `now`.
    pub(super) fn end_idle(&mut self, now: Instant) {
        let idle = self.limits.idle;
        for entry in self.open.values_mut().filter(|entry| entry.is_idle()) {
            let limit = if entry.protocol == NEW { idle.min(FIRST_REQUEST) } else { idle };
            if now.saturating_duration_since(entry.since) >= limit {
                entry.end(Ending::Idle);
            }
        }
    }

    /// Begins a request of the connection.
    pub(super) fn begin(&mut self, id: u64, version: Version, is_probe: bool) -> Result<(), NoPlace> {
        let Some(entry) = self.open.get_mut(&id) else { return Ok(()) };
        entry.since = Instant::now();
        let protocol = if version == Version::HTTP_2 { "http/2" } else { "http/1" };
        if entry.protocol != protocol {
            count_open(entry.protocol, -1.0);
            count_open(protocol, 1.0);
            entry.protocol = protocol;
        }
        let is_new = !is_probe && entry.working == 0;
        // A request without a key does not keep a place from one that may have a key.
        if is_new && self.busy >= self.limits.most_busy() && !self.displace(|entry| entry.working > 0) {
            return Err(refused(NoPlace::All));
        }
        if let Some(entry) = self.open.get_mut(&id) {
            entry.running += 1;
            entry.working += usize::from(!is_probe);
            self.running += 1;
            self.busy += usize::from(is_new);
        }
        Ok(())
    }

    /// Ends a request that [`begin`](Self::begin) let in.
    pub(super) fn finish(&mut self, id: u64, is_probe: bool) {
        let Some(entry) = self.open.get_mut(&id) else { return };
        entry.since = Instant::now();
        entry.running -= 1;
        self.running -= 1;
        if !is_probe {
            entry.working -= 1;
            self.busy -= usize::from(entry.working == 0);
        }
    }

    /// Counts the connection as `holder`'s from now on, unless all that these may have are busy.
    pub(super) fn hand_over(&mut self, id: u64, holder: &Holder) -> Result<(), NoPlace> {
        if self.open.get(&id).is_none_or(|entry| entry.holder == *holder) {
            return Ok(());
        }
        let is_over = self.count_of(holder) >= self.limits.most_of_one;
        if is_over && !self.displace(|entry| entry.holder == *holder) {
            return Err(refused(NoPlace::OfKey));
        }
        if let Some(entry) = self.open.get_mut(&id) {
            let before = std::mem::replace(&mut entry.holder, holder.clone());
            *self.by_holder.entry(holder.clone()).or_default() += 1;
            self.release(&before);
        }
        Ok(())
    }

    /// Removes a connection that has ended, with all its requests.
    pub(super) fn leave(&mut self, id: u64) {
        let Some(entry) = self.open.remove(&id) else { return };
        count_open(entry.protocol, -1.0);
        self.release(&entry.holder);
    }

    fn count_of(&self, holder: &Holder) -> usize {
        self.by_holder.get(holder).copied().unwrap_or_default()
    }

    fn release(&mut self, holder: &Holder) {
        if let Some(count) = self.by_holder.get_mut(holder) {
            *count -= 1;
            if *count == 0 {
                self.by_holder.remove(holder);
            }
        }
    }

    /// As [`displace`](Self::displace), but waits for one that was chosen before and has not ended yet.
    fn displace_one(&mut self, eligible: impl Fn(&Entry) -> bool) -> bool {
        let ends = |entry: &Entry| entry.displaced && entry.is_idle() && eligible(entry);
        self.open.values().any(ends) || self.displace(eligible)
    }

    /// Ends the connection that can be missed the most among the `eligible`: an idle one before a busy one, one without
    /// a key before one with a key, and of equals the one that has been as it is for the longest. Returns false if
    /// there is none.
    fn displace(&mut self, eligible: impl Fn(&Entry) -> bool) -> bool {
        let can_end = |entry: &&mut Entry| entry.end.is_some() && entry.is_idle() && eligible(entry);
        let rank = |entry: &&mut Entry| (entry.running > 0, entry.holder.has_key(), entry.since);
        let found = self.open.values_mut().filter(can_end).min_by_key(rank);
        found.map(|entry| entry.end(Ending::Displaced)).is_some()
    }
}

fn count_open(protocol: &'static str, change: f64) {
    gauge!("attune_connections", "protocol" => protocol).increment(change);
}

fn refused(why: NoPlace) -> NoPlace {
    let reason = match why {
        NoPlace::All => "full",
        NoPlace::OfKey => "key",
    };
    counter!("attune_connections_refused_total", "reason" => reason).increment(1);
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits =
        ConnectionLimits { most: 8, most_of_one: 4, idle: Duration::from_mins(3), unread: Duration::from_mins(1) };
    const VERSION: Version = Version::HTTP_11;

    fn address(last: u8) -> Holder {
        Holder::of_address([192, 0, 2, last].into())
    }

    fn key(name: &str) -> Holder {
        Holder::Key(name.into())
    }

    type Receivers = Vec<oneshot::Receiver<Ending>>;

    /// A table with a connection of each holder, and what tells that they must end.
    fn table(holders: &[Holder]) -> (Table, Receivers) {
        let mut table = Table::new(LIMITS);
        let mut ended = Vec::new();
        for (id, holder) in holders.iter().enumerate() {
            ended.push(table.enter(&address(id as u8)).expect("a place").1);
            table.hand_over(id as u64, holder).expect("a place");
        }
        (table, ended)
    }

    fn told(ended: &mut Receivers) -> Vec<usize> {
        (0..ended.len()).filter(|id| ended[*id].try_recv().is_ok()).collect()
    }

    #[test]
    fn an_address_is_one_client_and_so_is_a_network_of_ipv6() {
        let holder = |text: &str| Holder::of_address(text.parse().expect("an address"));
        assert_eq!(holder("2001:db8:1:2:3::4"), holder("2001:db8:1:2::9"));
        assert_ne!(holder("2001:db8:1:2::1"), holder("2001:db8:1:3::1"));
        assert_eq!(holder("::ffff:192.0.2.1"), address(1));
        assert_ne!(address(1), address(2));
    }

    #[test]
    fn a_full_table_lets_a_new_client_in_for_the_oldest_stranger() {
        let holders: Vec<_> = (0..8).map(|id| if id == 0 { key("first") } else { address(id) }).collect();
        let (mut table, mut ended) = table(&holders);
        assert!(table.enter(&address(99)).is_none(), "it must wait for the place");
        assert!(table.enter(&address(99)).is_none(), "and asking again ends no second one");
        assert_eq!(told(&mut ended), [1], "the oldest has a key");
        table.leave(1);
        assert!(table.enter(&address(99)).is_some());
    }

    #[test]
    fn a_client_without_a_key_displaces_its_own() {
        let (mut table, mut ended) = table(&[address(9), address(1), address(1), address(1), address(1)]);
        assert!(table.enter(&address(1)).is_none());
        assert_eq!(told(&mut ended), [1]);
    }

    #[test]
    fn a_running_request_keeps_the_place_of_a_key_and_not_of_a_stranger() {
        let (mut table, mut ended) = table(&[key("a"), address(1), key("a"), key("b"), key("b")]);
        for id in 0..2 {
            table.begin(id, VERSION, false).expect("a place");
        }
        for _ in 0..4 {
            table.make_room();
        }
        assert_eq!(told(&mut ended), [1, 2, 3, 4], "idle ones, then the stranger's");
        table.make_room();
        assert!(ended[0].try_recv().is_err(), "a request of a key goes on");
    }

    #[test]
    fn requests_of_keys_cannot_take_the_last_places_from_probes() {
        let holders: Vec<_> = (0..8).map(|id| key(if id < 4 { "a" } else { "b" })).collect();
        let (mut table, _ended) = table(&holders);
        for id in 0..7 {
            table.begin(id, VERSION, false).expect("a place");
        }
        assert_eq!(table.begin(7, VERSION, false), Err(NoPlace::All));
        assert_eq!(table.begin(7, VERSION, true), Ok(()), "a probe is answered");
        table.finish(0, false);
        assert_eq!(table.begin(7, VERSION, false), Ok(()));
    }

    #[test]
    fn a_key_has_a_part_of_the_places_and_gives_up_its_own_idle_ones() {
        let (mut table, mut ended) = table(&[key("a"), key("a"), key("a"), key("a"), address(1), address(2)]);
        for id in [0, 1, 3] {
            table.begin(id, VERSION, false).expect("a place");
        }
        assert_eq!(table.hand_over(4, &key("a")), Ok(()));
        assert_eq!(told(&mut ended), [2], "the idle one");
        table.leave(2);
        table.begin(4, VERSION, false).expect("a place");
        assert_eq!(table.hand_over(5, &key("a")), Err(NoPlace::OfKey));
        assert_eq!(table.hand_over(5, &key("b")), Ok(()), "another key has its own part");
    }

    #[test]
    fn what_sends_no_request_ends_and_what_waits_for_an_answer_does_not() {
        let (mut table, mut ended) = table(&[address(0), address(1), key("a"), key("a")]);
        let start = Instant::now();
        for id in 1..4 {
            table.begin(id, VERSION, false).expect("a place");
        }
        table.finish(1, false);
        table.finish(2, false);
        table.end_idle(start + (FIRST_REQUEST / 2));
        assert!(told(&mut ended).is_empty());
        table.end_idle(start + FIRST_REQUEST + Duration::from_secs(1));
        assert_eq!(told(&mut ended), [0], "it never sent one");
        table.end_idle(start + LIMITS.idle + Duration::from_secs(1));
        assert_eq!(told(&mut ended), [1, 2], "the last one runs");
    }
}
