//! Packet cases as data: name, what is installed, packets in, verdicts and packets out. Each case
//! runs on the byte slice, on XDP and on TC, and must come out the same.

pub mod build;
pub mod cases;
pub mod differ;
pub mod flow_life;
pub mod kernel;
pub mod laws;
pub mod slice;
mod sys;
pub mod verifier;
pub mod world;

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Address, Be16, Drop, FlowKey, protocol};
use lb_common::path::Budget;

/// One row of the table.
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
    /// Only where the kernel tells the MTU of a route: since Linux 5.12.
    pub asks_route_mtu: bool,
}

/// What happens in a case, in order.
#[derive(Clone, Debug)]
pub enum Step {
    /// A packet comes in from the clients' side.
    FromClient(Vec<u8>, Expect),
    /// A packet comes in from the backends' side.
    FromBackend(Vec<u8>, Expect),
    /// A slot's state and generation change.
    Backend {
        slot: u32,
        state: u32,
        generation: u32,
    },
    /// Routes changed: the epoch goes up.
    Epoch,
    /// What fragments told of others is too old from now on.
    Stale,
    /// What a CPU may do so many times in a period, which begins anew.
    Budget(Budget, u32),
    /// The node opens a socket of its own that listens there.
    Listen { local: SocketAddr, udp: bool },
    /// It closes all of them.
    CloseSockets,
    /// SNAT takes these node addresses.
    Sources(Vec<IpAddr>),
    /// SNAT takes so many ports from `first` on.
    Pool { first: u16, count: u16 },
    /// A second and a bit passes.
    Second,
    /// The table of handshakes must have an entry of this tuple, and loses it.
    Known {
        src: SocketAddr,
        dst: SocketAddr,
        udp: bool,
    },
    /// The table of handshakes must not have an entry of this tuple.
    Unknown {
        src: SocketAddr,
        dst: SocketAddr,
        udp: bool,
    },
    /// The table of handshakes loses the entry of this tuple, as under a flood.
    Evict {
        src: SocketAddr,
        dst: SocketAddr,
        udp: bool,
    },
}

/// What must become of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// To the kernel, untouched.
    Pass,
    /// Sent back out of the device it came by.
    Transmit(Vec<u8>),
    /// Sent out of the other device.
    Redirect(Vec<u8>),
    /// Given to the kernel's stack, translated.
    Stack(Vec<u8>),
    /// Given to the kernel, which resolves the neighbour.
    Resolve(Vec<u8>),
    Dropped(Drop),
    /// Put aside, where the hook can do so, else left to the kernel.
    Held,
    /// Lets those go on that were put aside, where the hook can do so, else is sent out of the
    /// other device.
    Released(Vec<u8>),
    /// The same, else is left to the kernel, untouched.
    LetGo,
}

/// Where a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Client,
    Backend,
    /// The node's own stack, on its way to the clients.
    Node,
}

/// A place where cases run.
pub trait Runner {
    /// Forgets all flows and installs the standard world ([`world`]).
    fn reset(&mut self);
    fn run(&mut self, from_client: bool, packet: &[u8]) -> Outcome;
    /// As [`Self::run`], for a packet whose buffer may be used for others.
    fn run_reused(&mut self, from_client: bool, packet: &[u8]) -> Outcome {
        self.run(from_client, packet)
    }
    fn set_backend(&mut self, slot: u32, state: u32, generation: u32);
    fn next_epoch(&mut self);
    fn make_stale(&mut self);
    fn set_budget(&mut self, budget: Budget, limit: u32);
    fn listen(&mut self, local: SocketAddr, udp: bool);
    fn close_sockets(&mut self);
    fn set_sources(&mut self, sources: &[IpAddr]);
    fn set_pool(&mut self, first: u16, count: u16);
    fn wait_second(&mut self);
    /// Whether there was an entry.
    fn evict(&mut self, src: SocketAddr, dst: SocketAddr, udp: bool) -> bool;
}

/// The tuple as the tables hold it.
fn tuple<A: Address>(src: SocketAddr, dst: SocketAddr, udp: bool) -> FlowKey<A> {
    let side = |side: SocketAddr| {
        let address = A::from_words(&world::words(side.ip()));
        (address, Be16::new(side.port()))
    };
    let ((src, src_port), (dst, dst_port)) = (side(src), side(dst));
    let protocol = if udp { protocol::UDP } else { protocol::TCP };
    FlowKey::new(src, src_port, dst, dst_port, protocol)
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub action: Action,
    pub packet: Vec<u8>,
    /// Drop counters that rose.
    pub counted: Vec<Drop>,
}

/// Actions as far as all runners can tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// To the kernel's stack, or (XDP) to the hook that resolves neighbours.
    Pass,
    Transmit,
    Redirect,
    Resolve,
    Drop,
    /// TC knows one action for sending, whichever the device.
    Send,
}

impl Expect {
    /// Says how `outcome` differs from what is expected of `sent`; `None` if it does not.
    pub fn difference(&self, sent: &[u8], outcome: &Outcome) -> Option<String> {
        use Action::{Pass, Redirect, Resolve, Send, Transmit};
        let dropped_for =
            |reason| outcome.action == Action::Drop && outcome.counted.contains(&reason);
        let (actions, packet): (&[Action], Option<&[u8]>) = match self {
            Self::Pass => (&[Pass], Some(sent)),
            Self::Transmit(packet) => (&[Transmit, Send], Some(packet)),
            Self::Redirect(packet) => (&[Redirect, Send], Some(packet)),
            Self::Stack(packet) => (&[Pass], Some(packet)),
            Self::Resolve(packet) => (&[Resolve, Pass, Send], Some(packet)),
            Self::Held if dropped_for(Drop::FragmentHeld) => return None,
            Self::Held => (&[Pass], Some(sent)),
            Self::Released(_) | Self::LetGo if dropped_for(Drop::FragmentResumed) => return None,
            Self::LetGo => (&[Pass], Some(sent)),
            Self::Released(packet) => (&[Redirect, Send], Some(packet)),
            Self::Dropped(reason) => {
                if outcome.action == Action::Drop && outcome.counted.contains(reason) {
                    return None;
                }
                return Some(format!(
                    "expected a drop for {reason:?}, got {:?} counting {:?}",
                    outcome.action, outcome.counted
                ));
            }
        };
        if !actions.contains(&outcome.action) {
            return Some(format!(
                "expected one of {actions:?}, got {:?} counting {:?}",
                outcome.action, outcome.counted
            ));
        }
        let packet = packet?;
        (packet != outcome.packet).then(|| {
            format!(
                "expected bytes\n  {}\ngot\n  {}",
                hex(packet),
                hex(&outcome.packet)
            )
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Step {
    /// Does what there is to do beside packets. `false` if the table of handshakes is not as the
    /// step says.
    pub fn set_up(&self, runner: &mut dyn Runner) -> bool {
        match self {
            Self::FromClient(..) | Self::FromBackend(..) => {}
            Self::Backend {
                slot,
                state,
                generation,
            } => runner.set_backend(*slot, *state, *generation),
            Self::Epoch => runner.next_epoch(),
            Self::Stale => runner.make_stale(),
            Self::Budget(budget, limit) => runner.set_budget(*budget, *limit),
            Self::Listen { local, udp } => runner.listen(*local, *udp),
            Self::CloseSockets => runner.close_sockets(),
            Self::Sources(sources) => runner.set_sources(sources),
            Self::Pool { first, count } => runner.set_pool(*first, *count),
            Self::Second => runner.wait_second(),
            Self::Evict { src, dst, udp } => {
                // Not there, it is evicted already.
                let _ = runner.evict(*src, *dst, *udp);
            }
            Self::Known { src, dst, udp } => return runner.evict(*src, *dst, *udp),
            Self::Unknown { src, dst, udp } => return !runner.evict(*src, *dst, *udp),
        }
        true
    }
}

/// Runs a case; the error says which step went wrong and how.
pub fn run(case: &Case, runner: &mut dyn Runner) -> Result<(), String> {
    runner.reset();
    for (number, step) in case.steps.iter().enumerate() {
        let fault = |what: String| format!("{}, step {}: {what}", case.name, number + 1);
        let (from_client, packet, expect) = match step {
            Step::FromClient(packet, expect) => (true, packet, expect),
            Step::FromBackend(packet, expect) => (false, packet, expect),
            step if step.set_up(runner) => continue,
            step => return Err(fault(format!("there is a handshake or is none: {step:?}"))),
        };
        let outcome = match expect {
            Expect::Released(_) | Expect::LetGo => runner.run_reused(from_client, packet),
            _ => runner.run(from_client, packet),
        };
        if let Some(difference) = expect.difference(packet, &outcome) {
            return Err(fault(difference));
        }
    }
    Ok(())
}
