//! What the kernel allows and what it was told. Reads files below a root, so that a test can bring its own machine.

use super::Finding;
use crate::buffers::PIPE;
use crate::limits::{self, Limits};
use crate::ring::{Choice, Driver, Wish};
use crate::{ring, serve};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Bits of `CapEff` that lift the bounds on pipes (capabilities(7)).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// What the ports of one address allow by default: 32768 to 60999.
const PORTS_DEFAULT: u64 = 28_232;
/// Descriptors beside connections and what each shard has: logs, the API's connections.
const DESCRIPTORS_BASE: u64 = 256;
const PAGE: u64 = 4096;
/// Resident and kernel memory of a tunnel, half of it for each of its sockets (tuning/limits.md).
const SOCKET_BYTES: u64 = 4_400;

pub struct Machine {
    root: PathBuf,
}

/// What the configuration asks of the machine.
pub struct Load<'a> {
    pub shards: usize,
    /// CPUs this process may run on.
    pub cores: usize,
    pub limits: &'a Limits,
}

impl Load<'_> {
    /// Sockets there can be: two for each connection, and no more than descriptors (`hard`: their limit).
    fn sockets(&self, hard: Option<u64>) -> u64 {
        ((2 * self.shards * self.limits.connections_max) as u64).min(hard.unwrap_or(u64::MAX))
    }
}

impl Machine {
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A line of `/proc/self/status`.
    fn status(&self, name: &str) -> Option<String> {
        let status = self.text("proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.text("proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    fn capable(&self, any_of: u64) -> bool {
        let set = self.status("CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        set.is_some_and(|set| set & any_of != 0)
    }

    /// `choice`: what [`ring::choose`] said to this wish.
    pub fn driver(&self, wish: Wish, choice: &io::Result<Choice>) -> Finding {
        let best = format!("{}, Linux 6.1", Driver::UringDefer.as_str());
        match choice {
            Err(error) => Finding::fail("driver", error.to_string(), self.ring_remedy()).wanted(best),
            Ok(choice) if wish == Wish::Epoll || choice.driver == Driver::UringDefer => {
                Finding::pass("driver", format!("{}: {}", choice.driver.as_str(), choice.reason))
            }
            Ok(choice) => {
                let value = format!("{}: {}", choice.driver.as_str(), choice.reason);
                Finding::warn("driver", value, self.ring_remedy()).wanted(best)
            }
        }
    }

    /// Why a ring is refused, as far as the machine tells.
    fn ring_remedy(&self) -> String {
        match self.number("proc/sys/kernel/io_uring_disabled") {
            Some(2) => return "sysctl -w kernel.io_uring_disabled=0".into(),
            Some(1) => {
                return "sysctl -w kernel.io_uring_disabled=0, or put the gate's group into kernel.io_uring_group"
                    .into();
            }
            _ => {}
        }
        if self.status("Seccomp").is_some_and(|mode| mode == "2") {
            return "a seccomp filter is in force: run the container with \
                    --security-opt seccomp=tuning/docker/seccomp-io-uring.json"
                .into();
        }
        match self.kernel() {
            Some(version) if version < (6, 1) => "run Linux 6.1 or newer".into(),
            _ => "look at the reason beside the driver; epoll works meanwhile".into(),
        }
    }

    /// Rings count against RLIMIT_MEMLOCK before Linux 5.12 only.
    pub fn memlock(&self, load: &Load<'_>, limit: Option<u64>) -> Finding {
        if self.kernel().is_none_or(|version| version >= (5, 12)) {
            return Finding::pass("memlock", "not charged for rings since Linux 5.12");
        }
        let wanted = ring::BYTES * load.shards as u64;
        match limit {
            Some(bytes) if bytes < wanted => {
                let remedy = format!("LimitMEMLOCK={wanted} (systemd), --ulimit memlock={wanted} (docker)");
                Finding::warn("memlock", format!("{bytes} bytes"), remedy)
                    .wanted(format!("{wanted} bytes for the rings of {} shards", load.shards))
            }
            limit => Finding::pass(
                "memlock",
                limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes")),
            ),
        }
    }

    /// A shard is a thread that wants a CPU: more shards than CPUs, or than the quota of the cgroup, stall each other.
    pub fn cpus(&self, load: &Load<'_>) -> Finding {
        let Load { shards, cores, .. } = *load;
        let value = |allowed: String| format!("{shards} shards, {allowed}");
        if shards > cores {
            let remedy = format!("SANDGATE_SHARDS={cores}, or SANDGATE_PIN=false if it must be so");
            return Finding::warn("cpus", value(format!("{cores} CPUs")), remedy);
        }
        match self.quota() {
            Some(quota) if (shards as f64) > quota => {
                let whole = (quota.floor() as usize).max(1);
                let remedy = format!("SANDGATE_SHARDS={whole}, or a higher CPU limit, or none");
                Finding::warn("cpus", value(format!("a quota of {quota:.2} CPUs")), remedy)
                    .wanted("a CPU for each shard; beyond the quota all of them stand still")
            }
            quota => {
                let quota = quota.map_or_else(String::new, |quota| format!(", quota {quota:.2}"));
                Finding::pass("cpus", value(format!("{cores} CPUs{quota}")))
            }
        }
    }

    /// The smallest quota of this process's cgroups in CPUs, as cgroup v2 tells it.
    fn quota(&self) -> Option<f64> {
        let quota_of = |group: &Path| {
            let text = self.text(&format!("sys/fs/cgroup/{}/cpu.max", group.display()))?;
            let (quota, period) = text.split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        };
        self.groups()?.iter().filter_map(|group| quota_of(group)).min_by(f64::total_cmp)
    }

    /// This process's group of cgroup v2 and those above it.
    fn groups(&self) -> Option<Vec<PathBuf>> {
        let groups = self.text("proc/self/cgroup")?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Path::new(own).ancestors().map(Path::to_owned).collect())
    }

    /// `hard`: RLIMIT_NOFILE, to which the gate raises its own limit at start. `None`: unlimited.
    pub fn descriptors(&self, load: &Load<'_>, hard: Option<u64>) -> Finding {
        let limits = load.limits;
        let per_shard = 2 * limits.connections_max + limits.runner_idle_max + 2 * limits.pipes_max;
        let own = DESCRIPTORS_BASE + load.shards as u64 * limits::SHARD_DESCRIPTORS;
        let wanted = (load.shards * per_shard) as u64 + own + limits::DESCRIPTORS_KEPT_MAX;
        let Some(hard) = hard.filter(|hard| *hard < wanted) else {
            let value = hard.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
            return Finding::pass("descriptors", value);
        };
        let carries = limits::Descriptors::of(hard, own).clients / 2;
        let value = format!("{hard}, enough for {carries} connections");
        let above = self.number("proc/sys/fs/nr_open").is_some_and(|most| most < wanted);
        let first = if above { format!("sysctl -w fs.nr_open={wanted}, then ") } else { String::new() };
        let remedy = format!(
            "{first}LimitNOFILE={wanted} (systemd), --ulimit nofile={wanted} (docker); or lower \
             SANDGATE_CONNECTIONS_MAX, so that what is too much is turned away by the gate"
        );
        let wanted =
            format!("{wanted}: two for each of {} connections", load.shards * limits.connections_max);
        if carries < 1000 {
            Finding::fail("descriptors", value, remedy).wanted(wanted)
        } else {
            Finding::warn("descriptors", value, remedy).wanted(wanted)
        }
    }

    /// Tunnels that are many wait in epoll sets, two sockets each; the bound is the user's, for all processes together.
    /// `hard`: as for [`Self::descriptors`]; more sockets than that there cannot be.
    pub fn watches(&self, load: &Load<'_>, hard: Option<u64>) -> Finding {
        let wanted = load.sockets(hard);
        match self.number("proc/sys/fs/epoll/max_user_watches") {
            Some(most) if most < wanted => {
                let remedy = format!("sysctl -w fs.epoll.max_user_watches={wanted}");
                Finding::warn("epoll watches", most.to_string(), remedy)
                    .wanted(format!("{wanted}: beyond it a tunnel waits by the ring, at a tenth more CPU"))
            }
            Some(most) => Finding::pass("epoll watches", most.to_string()),
            None => Finding::warn("epoll watches", "cannot be read", "is /proc mounted?"),
        }
    }

    /// Connections wait here between two looks of a shard; beyond it they are dropped and tried again after 1 s.
    pub fn backlog(&self) -> Finding {
        let wanted = serve::BACKLOG as u64;
        match self.number("proc/sys/net/core/somaxconn") {
            Some(most) if most < wanted => {
                let remedy = format!("sysctl -w net.core.somaxconn={wanted}");
                Finding::warn("somaxconn", most.to_string(), remedy)
                    .wanted(format!("{wanted} waiting connections for each shard"))
            }
            Some(most) => Finding::pass("somaxconn", most.to_string()),
            None => Finding::warn("somaxconn", "cannot be read", "is /proc mounted?"),
        }
    }

    /// A connection that says nothing stays half-open for a second. Who makes many of them fills that queue, and without
    /// cookies nobody else gets in.
    pub fn half_open(&self, defer_accept: bool) -> Finding {
        match self.number("proc/sys/net/ipv4/tcp_syncookies") {
            Some(0) if defer_accept => {
                let remedy = "sysctl -w net.ipv4.tcp_syncookies=1, or SANDGATE_DEFER_ACCEPT=false";
                Finding::warn("tcp_syncookies", "0", remedy)
                    .wanted("1, so that silent connections keep nobody out")
            }
            Some(cookies) => Finding::pass("tcp_syncookies", cookies.to_string()),
            None => Finding::warn("tcp_syncookies", "cannot be read", "is /proc mounted?"),
        }
    }

    /// bbr paces with timers, which is all it adds on a link without loss and with microseconds of delay.
    pub fn congestion(&self) -> Finding {
        match self.text("proc/sys/net/ipv4/tcp_congestion_control") {
            Some(name) if name.starts_with("bbr") => {
                let remedy =
                    "sysctl -w net.ipv4.tcp_congestion_control=cubic, or leave it where clients are far away";
                Finding::warn("congestion", name, remedy)
                    .wanted("cubic, where gate and runners share a data centre: 100 MiB cost 3.5 times the CPU with bbr")
            }
            Some(name) => Finding::pass("congestion", name),
            None => Finding::warn("congestion", "cannot be read", "is /proc mounted?"),
        }
    }

    /// A tracked connection is an entry; when the table is full, new ones are dropped without a word. `hard`: as for
    /// [`Self::descriptors`].
    pub fn conntrack(&self, load: &Load<'_>, hard: Option<u64>) -> Finding {
        let Some(most) = self.number("proc/sys/net/netfilter/nf_conntrack_max") else {
            return Finding::pass("conntrack", "not loaded");
        };
        let count = self.number("proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
        let (value, wanted) = (format!("{count} of {most} entries"), load.sockets(hard));
        // 0: no bound.
        if most == 0 || most >= wanted {
            return Finding::pass("conntrack", value);
        }
        let remedy = format!(
            "notrack for the gate's ports (tuning/limits.md), where no NAT leads to it; else sysctl -w \
             net.netfilter.nf_conntrack_max={wanted}"
        );
        Finding::warn("conntrack", value, remedy)
            .wanted(format!("{wanted}: one for each socket, as far as rules track them"))
    }

    /// A machine or a cgroup that is short of memory drops connections or ends the process. `hard`: as for
    /// [`Self::descriptors`].
    pub fn memory(&self, load: &Load<'_>, hard: Option<u64>) -> Finding {
        let total = self.text("proc/meminfo").and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        });
        let Some(most) = [total, self.memory_limit()].into_iter().flatten().min() else {
            return Finding::warn("memory", "cannot be read", "is /proc mounted?");
        };
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let wanted = load.sockets(hard) * SOCKET_BYTES;
        if most >= wanted {
            return Finding::pass("memory", mib(most));
        }
        let connections = most / 2 / SOCKET_BYTES / load.shards as u64;
        let remedy = format!(
            "a higher limit, or SANDGATE_CONNECTIONS_MAX below {connections}, so that what is too much is turned away by \
             the gate"
        );
        Finding::warn("memory", mib(most), remedy).wanted(format!(
            "{} for as many idle tunnels as may come, the kernel's part among it",
            mib(wanted)
        ))
    }

    /// The smallest limit of this process's cgroups, as cgroup v2 tells it.
    fn memory_limit(&self) -> Option<u64> {
        let limit = |group: &Path| self.number(&format!("sys/fs/cgroup/{}/memory.max", group.display()));
        self.groups()?.iter().filter_map(|group| limit(group)).min()
    }

    /// Connections to one runner differ in our port alone. `listen`: the gate's own port, which none of them may have.
    pub fn ports(&self, listen: Option<u16>) -> Finding {
        let range = self.text("proc/sys/net/ipv4/ip_local_port_range");
        let ends = range.as_deref().and_then(|range| {
            let mut ends = range.split_ascii_whitespace().map(str::parse::<u64>);
            Some((ends.next()?.ok()?, ends.next()?.ok()?))
        });
        let Some((first, last)) = ends.filter(|(first, last)| first <= last) else {
            return Finding::warn("ports", "cannot be read", "is /proc mounted?");
        };
        let count = last - first + 1;
        let value = format!("{first} to {last}: {count} connections to one runner at a time");
        if count < PORTS_DEFAULT {
            let remedy = "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\", or wider";
            return Finding::warn("ports", value, remedy).wanted(format!("{PORTS_DEFAULT} or more"));
        }
        let own =
            listen.filter(|port| (first..=last).contains(&u64::from(*port)) && !self.is_reserved(*port));
        if let Some(port) = own {
            let remedy = format!(
                "add {port} to net.ipv4.ip_local_reserved_ports, or set PROXY_PORT outside the range"
            );
            return Finding::warn("ports", format!("{value}; {port} is the gate's own"), remedy)
                .wanted("its port kept from outgoing connections, which could have it when the gate starts");
        }
        Finding::pass("ports", value)
    }

    fn is_reserved(&self, port: u16) -> bool {
        let list = self.text("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
        list.split(',').any(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse().is_ok_and(|first: u16| first <= port)
                && last.parse().is_ok_and(|last: u16| port <= last)
        })
    }

    /// Beyond the user's share new pipes hold two pages instead of 256, and splice moves 8 KiB at a time.
    pub fn pipes(&self, load: &Load<'_>) -> Finding {
        if self.capable(CAP_SYS_RESOURCE | CAP_SYS_ADMIN) {
            return Finding::pass("pipes", "no bound: this process has CAP_SYS_RESOURCE or CAP_SYS_ADMIN");
        }
        let most = self.number("proc/sys/fs/pipe-max-size").unwrap_or(PIPE as u64);
        if most < PIPE as u64 {
            let remedy = format!("sysctl -w fs.pipe-max-size={PIPE}");
            return Finding::warn("pipes", format!("pipes of {most} bytes"), remedy)
                .wanted(format!("{PIPE} bytes"));
        }
        let wanted = (load.shards * load.limits.pipes_max * PIPE) as u64 / PAGE;
        match self.number("proc/sys/fs/pipe-user-pages-soft") {
            // 0: no bound.
            Some(pages @ 1..) if pages < wanted => {
                let full = pages * PAGE / PIPE as u64;
                Finding::warn(
                    "pipes",
                    format!("{pages} pages, {full} full pipes"),
                    format!("sysctl -w fs.pipe-user-pages-soft={wanted}"),
                )
                .wanted(format!("{wanted} pages: {} pipes of 1 MiB in each shard", load.limits.pipes_max))
            }
            Some(0) => Finding::pass("pipes", "no bound"),
            Some(pages) => Finding::pass("pipes", format!("{pages} pages")),
            None => Finding::warn("pipes", "cannot be read", "is /proc mounted?"),
        }
    }
}

/// Whether the address can be taken. Nothing listens here, so a running gate loses no connection to this.
pub fn listen(address: SocketAddr) -> Finding {
    match crate::socket::bind(address) {
        Ok(_) => Finding::pass("listen", format!("{address} can be taken")),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program, or another user's gate, has the port: stop it or set PROXY_PORT"
                }
                io::ErrorKind::PermissionDenied => {
                    "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
                }
                io::ErrorKind::AddrNotAvailable => "no interface has SANDGATE_LISTEN",
                _ => "set SANDGATE_LISTEN and PROXY_PORT to an address of this machine",
            };
            Finding::fail("listen", format!("{address}: {error}"), remedy)
        }
    }
}
