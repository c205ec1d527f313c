//! Machines as files in a folder: what each of them lets the doctor say.

use super::machine::{Load, Machine};
use super::{Finding, Verdict};
use crate::limits::Limits;
use crate::ring::{Choice, Driver, Wish};
use std::fs;
use std::io;
use std::path::PathBuf;

struct Root(PathBuf);

impl Root {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("sandgate-doctor-{}", uuid::Uuid::now_v7()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
            fs::write(path, text).expect("writable");
        }
        Self(root)
    }

    fn machine(&self) -> Machine {
        Machine::at(&self.0)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // A folder left behind in the temporary one does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const STATUS: &str = "proc/self/status";
const UNPRIVILEGED: (&str, &str) = (STATUS, "Name:\tx\nCapEff:\t0000000000000000\nSeccomp:\t0\n");

fn limits(connections_max: usize, pipes_max: usize) -> Limits {
    Limits { connections_max, pipes_max, runner_idle_max: 0, ..Limits::default() }
}

fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
    findings.iter().map(|f| f.verdict).collect()
}

#[test]
fn a_missing_ring_is_explained_by_what_forbids_it() {
    let refused = || Ok(Choice { driver: Driver::Epoll, reason: "EPERM".into() });
    let filtered = (STATUS, "Seccomp:\t2\n");
    let osrelease = "proc/sys/kernel/osrelease";
    let switch = "proc/sys/kernel/io_uring_disabled";
    for (files, remedy) in [
        (&[(switch, "2\n"), filtered][..], "kernel.io_uring_disabled=0"),
        (&[(switch, "1\n")], "kernel.io_uring_group"),
        (&[(switch, "0\n"), filtered], "seccomp-io-uring.json"),
        (&[(osrelease, "5.15.0-91-generic\n")], "Linux 6.1"),
        (&[(osrelease, "6.12.1\n"), (switch, "0\n")], "reason beside the driver"),
    ] {
        let root = Root::new(files);
        let finding = root.machine().driver(Wish::Auto, &refused());
        assert_eq!(finding.verdict, Verdict::Warn, "{finding}");
        assert!(finding.remedy.contains(remedy), "{finding}");
        let forced = root.machine().driver(Wish::IoUring, &Err(io::Error::other("not available")));
        assert_eq!(forced.verdict, Verdict::Fail, "{forced}");
        assert!(forced.remedy.contains(remedy), "{forced}");
    }
}

#[test]
fn a_driver_passes_when_it_is_the_best_or_the_one_asked_for() {
    let root = Root::new(&[]);
    let choice = |driver| Ok(Choice { driver, reason: "best available".into() });
    for (wish, driver, verdict) in [
        (Wish::Auto, Driver::UringDefer, Verdict::Pass),
        (Wish::Auto, Driver::UringCoop, Verdict::Warn),
        (Wish::IoUring, Driver::UringPlain, Verdict::Warn),
        (Wish::Epoll, Driver::Epoll, Verdict::Pass),
        (Wish::Auto, Driver::Epoll, Verdict::Warn),
    ] {
        let finding = root.machine().driver(wish, &choice(driver));
        assert_eq!(finding.verdict, verdict, "{finding}");
    }
}

#[test]
fn locked_memory_counts_before_linux_5_12_only() {
    let limits = Limits::default();
    let load = Load { shards: 4, cores: 4, limits: &limits };
    for (release, limit, verdict) in [
        ("5.11.22", Some(65_536), Verdict::Warn),
        ("5.11.22", Some(64 << 20), Verdict::Pass),
        ("5.11.22", None, Verdict::Pass),
        ("5.12.0", Some(65_536), Verdict::Pass),
        ("6.18.44-fc", Some(0), Verdict::Pass),
    ] {
        let root = Root::new(&[("proc/sys/kernel/osrelease", release)]);
        let finding = root.machine().memlock(&load, limit);
        assert_eq!(finding.verdict, verdict, "{release} {limit:?}: {finding}");
    }
}

#[test]
fn shards_need_a_cpu_each_within_the_smallest_quota_above_them() {
    let limits = Limits::default();
    let group = ("proc/self/cgroup", "0::/pod/gate\n");
    let (own, above) = ("sys/fs/cgroup/pod/gate/cpu.max", "sys/fs/cgroup/pod/cpu.max");
    for (files, shards, verdict) in [
        (&[][..], 8, Verdict::Pass),
        (&[], 9, Verdict::Warn),
        (&[group, (own, "max 100000\n")], 8, Verdict::Pass),
        (&[group, (own, "200000 100000\n")], 8, Verdict::Warn),
        (&[group, (own, "200000 100000\n")], 2, Verdict::Pass),
        (&[group, (own, "max 100000\n"), (above, "150000 100000\n")], 2, Verdict::Warn),
    ] {
        let root = Root::new(files);
        let finding = root.machine().cpus(&Load { shards, cores: 8, limits: &limits });
        assert_eq!(finding.verdict, verdict, "{files:?}: {finding}");
    }
    let root = Root::new(&[group, (own, "250000 100000\n")]);
    let finding = root.machine().cpus(&Load { shards: 8, cores: 8, limits: &limits });
    assert!(finding.remedy.contains("SANDGATE_SHARDS=2"), "{finding}");
}

#[test]
fn descriptors_are_two_for_each_connection_that_may_come() {
    let (root, limits) = (Root::new(&[("proc/sys/fs/nr_open", "30000\n")]), limits(10_000, 0));
    let load = Load { shards: 2, cores: 2, limits: &limits };
    let wanted = 2 * 2 * 10_000 + 256 + 2 * 10 + 1024;
    let told = [None, Some(wanted), Some(wanted - 1), Some(20_000), Some(1024)]
        .map(|hard| root.machine().descriptors(&load, hard));
    use Verdict::{Fail, Pass, Warn};
    assert_eq!(verdicts(&told), [Pass, Pass, Warn, Warn, Fail], "{told:?}");
    let many = Load { shards: 96, ..load };
    let value = root.machine().descriptors(&many, Some(1024)).value;
    assert!(value.contains("enough for 0 connections"), "{value}");
    assert!(told[3].value.contains("9350 connections"), "{}", told[3]);
    assert!(told[3].remedy.starts_with("sysctl -w fs.nr_open=41300"), "{}", told[3]);
}

#[test]
fn the_backlog_and_the_ports_are_those_of_the_network_namespace() {
    let (somaxconn, range) = ("proc/sys/net/core/somaxconn", "proc/sys/net/ipv4/ip_local_port_range");
    for (backlog, ports, expected) in [
        ("4096", "32768\t60999", [Verdict::Pass, Verdict::Pass]),
        ("128", "1024 65535", [Verdict::Warn, Verdict::Pass]),
        ("65535", "50000 60999", [Verdict::Pass, Verdict::Warn]),
        ("4096", "60999 32768", [Verdict::Pass, Verdict::Warn]),
    ] {
        let root = Root::new(&[(somaxconn, backlog), (range, ports)]);
        let told = [root.machine().backlog(), root.machine().ports(None)];
        assert_eq!(verdicts(&told), expected, "{told:?}");
    }
    let nothing = Root::new(&[]);
    let told = [nothing.machine().backlog(), nothing.machine().ports(None)];
    assert_eq!(verdicts(&told), [Verdict::Warn; 2], "what cannot be read is not taken for good");
}

#[test]
fn the_gate_s_own_port_is_kept_from_outgoing_connections() {
    let (range, reserved) =
        ("proc/sys/net/ipv4/ip_local_port_range", "proc/sys/net/ipv4/ip_local_reserved_ports");
    for (ports, kept, listen, verdict) in [
        ("32768 60999", "", 4000, Verdict::Pass),
        ("1024 65535", "", 4000, Verdict::Warn),
        ("1024 65535", "3000,4000,6379", 4000, Verdict::Pass),
        ("1024 65535", "3000,3990-4010", 4000, Verdict::Pass),
        ("1024 65535", "4001-5000,400", 4000, Verdict::Warn),
    ] {
        let told = Root::new(&[(range, ports), (reserved, kept)]).machine().ports(Some(listen));
        assert_eq!(told.verdict, verdict, "{kept}: {told}");
    }
}

#[test]
fn bbr_is_named_with_what_it_costs() {
    for (name, verdict) in [
        ("cubic\n", Verdict::Pass),
        ("reno\n", Verdict::Pass),
        ("bbr\n", Verdict::Warn),
        ("bbr3\n", Verdict::Warn),
    ] {
        let told = Root::new(&[("proc/sys/net/ipv4/tcp_congestion_control", name)]).machine().congestion();
        assert_eq!((told.verdict, told.value.as_str()), (verdict, name.trim()), "{told}");
        assert_eq!(told.remedy.contains("tcp_congestion_control=cubic"), verdict == Verdict::Warn, "{told}");
    }
    let unread = Root::new(&[]).machine().congestion();
    assert_eq!(unread.verdict, Verdict::Warn, "what cannot be read is not taken for good");
}

#[test]
fn tracked_connections_need_an_entry_for_each_socket_there_can_be() {
    let (most, count) =
        ("proc/sys/net/netfilter/nf_conntrack_max", "proc/sys/net/netfilter/nf_conntrack_count");
    let limits = Limits { connections_max: 1000, ..Limits::default() };
    let load = Load { shards: 2, cores: 2, limits: &limits };
    for (files, hard, verdict) in [
        (&[][..], None, Verdict::Pass),
        (&[(most, "4000"), (count, "17")], None, Verdict::Pass),
        (&[(most, "3999"), (count, "17")], None, Verdict::Warn),
        (&[(most, "3999"), (count, "17")], Some(3999), Verdict::Pass),
        (&[(most, "0"), (count, "17")], None, Verdict::Pass),
    ] {
        let told = Root::new(files).machine().conntrack(&load, hard);
        assert_eq!(told.verdict, verdict, "{files:?}: {told}");
    }
    let told = Root::new(&[(most, "3999"), (count, "17")]).machine().conntrack(&load, None);
    assert!(told.value == "17 of 3999 entries" && told.remedy.contains("nf_conntrack_max=4000"), "{told}");
    assert!(told.remedy.contains("notrack"), "{told}");
}

#[test]
fn memory_is_enough_for_all_tunnels_within_the_smallest_limit_above_them() {
    let limits = Limits { connections_max: 1000, ..Limits::default() };
    let load = Load { shards: 2, cores: 2, limits: &limits };
    // 4000 sockets of 4400 bytes.
    let (enough, short) = ("17600000\n", "17599999\n");
    let (info, group) = (
        ("proc/meminfo", "MemTotal:       24684084 kB\nMemFree: 1 kB\n"),
        ("proc/self/cgroup", "0::/pod/gate\n"),
    );
    let (own, above) = ("sys/fs/cgroup/pod/gate/memory.max", "sys/fs/cgroup/pod/memory.max");
    for (files, hard, verdict) in [
        (&[][..], None, Verdict::Warn),
        (&[info], None, Verdict::Pass),
        (&[("proc/meminfo", "MemTotal: 16000 kB\n")], None, Verdict::Warn),
        (&[info, group, (own, "max\n")], None, Verdict::Pass),
        (&[info, group, (own, enough)], None, Verdict::Pass),
        (&[info, group, (own, short)], None, Verdict::Warn),
        (&[info, group, (own, short)], Some(3999), Verdict::Pass),
        (&[info, group, (own, "max\n"), (above, short)], None, Verdict::Warn),
    ] {
        let told = Root::new(files).machine().memory(&load, hard);
        assert_eq!(told.verdict, verdict, "{files:?}: {told}");
    }
    let told = Root::new(&[info, group, (own, "8800000\n")]).machine().memory(&load, None);
    assert!(told.remedy.contains("SANDGATE_CONNECTIONS_MAX below 500"), "{told}");
}

#[test]
fn epoll_watches_are_to_do_for_all_sockets_there_can_be() {
    let limits = Limits { connections_max: 1000, ..Limits::default() };
    let load = Load { shards: 2, cores: 2, limits: &limits };
    for (watches, hard, verdict) in [
        ("4000", None, Verdict::Pass),
        ("3999", None, Verdict::Warn),
        ("3999", Some(3999), Verdict::Pass),
        ("many", None, Verdict::Warn),
    ] {
        let root = Root::new(&[("proc/sys/fs/epoll/max_user_watches", watches)]);
        let told = root.machine().watches(&load, hard);
        assert_eq!(told.verdict, verdict, "{told:?}");
    }
}

#[test]
fn connections_that_wait_for_their_first_byte_need_cookies() {
    let cookies = "proc/sys/net/ipv4/tcp_syncookies";
    for (value, defer_accept, verdict) in [
        ("1", true, Verdict::Pass),
        ("0", true, Verdict::Warn),
        ("0", false, Verdict::Pass),
        ("?", true, Verdict::Warn),
    ] {
        let told = Root::new(&[(cookies, value)]).machine().half_open(defer_accept);
        assert_eq!(told.verdict, verdict, "{told:?}");
    }
}

#[test]
fn pipes_are_bounded_for_those_without_the_capability() {
    let (soft, size) = ("proc/sys/fs/pipe-user-pages-soft", "proc/sys/fs/pipe-max-size");
    let limits = limits(1, 64);
    let admin = (STATUS, "CapEff:\t0000000000200000\n");
    let resource = (STATUS, "CapEff:\t0000000001000000\n");
    let other = (STATUS, "CapEff:\t00000000a80425fb\n");
    for (files, shards, verdict) in [
        (&[UNPRIVILEGED, (soft, "16384")][..], 1, Verdict::Pass),
        (&[UNPRIVILEGED, (soft, "16384")], 2, Verdict::Warn),
        (&[other, (soft, "16384")], 2, Verdict::Warn),
        (&[UNPRIVILEGED, (soft, "0")], 64, Verdict::Pass),
        (&[UNPRIVILEGED, (soft, "0"), (size, "65536")], 1, Verdict::Warn),
        (&[admin, (soft, "16384"), (size, "65536")], 2, Verdict::Pass),
        (&[resource, (soft, "16384")], 2, Verdict::Pass),
        (&[UNPRIVILEGED], 1, Verdict::Warn),
    ] {
        let root = Root::new(files);
        let finding = root.machine().pipes(&Load { shards, cores: 64, limits: &limits });
        assert_eq!(finding.verdict, verdict, "{files:?}: {finding}");
    }
}

#[test]
fn an_address_is_tried_without_listening_on_it() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = held.local_addr().expect("bound");
    let taken = super::machine::listen(addr);
    assert_eq!(taken.verdict, Verdict::Fail, "{taken}");
    assert!(taken.remedy.contains("PROXY_PORT"), "{taken}");
    drop(held);
    // Gates of one user share the port, and so does the doctor.
    let gate = crate::socket::listen(addr, 1, false).expect("free again");
    assert_eq!(super::machine::listen(addr).verdict, Verdict::Pass);
    drop(gate);
    let foreign = super::machine::listen(([192, 0, 2, 1], 4000).into());
    assert!(foreign.remedy.contains("SANDGATE_LISTEN"), "{foreign}");
}
