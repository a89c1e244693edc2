//! What backends need for direct server return.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};

use crate::{
    host::Host,
    net::{Family, Network},
    sockets,
};

/// UDP port of an echo server that answers from the address it was asked at. lbt-agent's, which
/// listens on every address, answers from the backend's own.
pub const DATAGRAM_PORT: u16 = 7100;

static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lbd-decap-ebpf"));

/// Backends that answer clients themselves, for as long as this is held.
pub struct Direct {
    _programs: Vec<Ebpf>,
    stop: Arc<AtomicBool>,
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Direct {
    /// In [`crate::net::Layout::OneArm`]: gives every backend the network's first service
    /// addresses, takes packets out of tunnels there, and leaves it a route to the clients but none
    /// through the node, so that what arrives at a client came directly.
    pub fn new(network: &Network) -> anyhow::Result<Self> {
        let mut programs = Vec::new();
        let stop = Arc::new(AtomicBool::new(false));
        for (i, backend) in (1..).zip(&network.backends) {
            // Nobody but the node answers for the service's address (as with LVS).
            backend.sysctl(&[
                ("ipv4/conf/all/arp_ignore", "1"),
                ("ipv4/conf/all/arp_announce", "2"),
            ])?;
            for family in Family::BOTH {
                let vip = network.vip(0, family);
                let length = if family == Family::V4 { 32 } else { 128 };
                backend.add_address("lo", vip, length)?;
                for address in [vip, network.backend(i, family)] {
                    echo(backend, (address, DATAGRAM_PORT).into(), stop.clone())?;
                }
            }
            backend.ip("route del 0.0.0.0/0\nroute del ::/0\n\
                 route add 10.0.0.0/24 dev eth0\nroute add fd00:c::/64 dev eth0")?;
            let mut ebpf = Ebpf::load(DECAP)?;
            let program: &mut Xdp = ebpf.program_mut("decap").context("no decap")?.try_into()?;
            program.load()?;
            backend.run(|| program.attach(c"eth0", XdpMode::default()))?;
            programs.push(ebpf);
        }
        Ok(Self {
            _programs: programs,
            stop,
        })
    }
}

/// Answers datagrams to `address` from there, in lbt-agent's words.
fn echo(backend: &Host, address: SocketAddr, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let socket = backend.run(|| UdpSocket::bind(address))?;
    sockets::hold_much(&socket)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let name = backend.name().to_owned();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let mut answer = format!("{name} {peer} ").into_bytes();
            answer.extend(&buffer[..length]);
            let _ = socket.send_to(&answer, peer);
        }
    });
    Ok(())
}
