//! Answers to packets whose checksum is left to whoever sends them, as a container's or a virtual
//! machine's are: TC builds the answer in the same buffer.
//!
//! ```text
//!   client's namespace            node's namespace
//!   c1 198.51.100.7  ── veth ──  c0 198.51.100.254, lbd_tc, no checksum offload
//! ```

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use lb_tests::packets::{
    kernel::{Hook, Kernel},
    world::{Addresses, CLIENT_MAC, port},
};

const PATIENCE: Duration = Duration::from_secs(3);

fn sh(command: &str) {
    let done = Command::new("sh").args(["-ec", command]).output();
    let done = done.expect("running sh");
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command}: {errors}");
}

#[test]
fn clients_with_checksum_offload_are_refused_at_once() {
    let mut kernel = Kernel::new(Hook::Tc).expect("the programs load");
    // Without offload the kernel fills in the checksum itself, where the buffer says it belongs.
    sh("ethtool -K c0 tx off");
    let program = kernel.ebpf.program_mut("lbd_tc").expect("lbd_tc");
    let program: &mut SchedClassifier = program.try_into().expect("a TC program");
    program
        .attach(c"c0", TcAttachType::Ingress)
        .expect("attaching");
    let (at, client_at) = mpsc::channel();
    let (ready, go) = mpsc::channel();
    let client = thread::spawn(move || {
        // SAFETY: no pointers; a namespace of this thread only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // SAFETY: no arguments.
        at.send(unsafe { libc::gettid() }).expect("the test waits");
        go.recv().expect("the test sends");
        sh("ip link set lo up; ip link set c1 up
            ip addr add 198.51.100.7/24 dev c1; ip route add default via 198.51.100.254
            ip addr add 2001:db8:c::7/64 dev c1 nodad; ip -6 route add default via 2001:db8:c::fe");
        [false, true].map(|v6| (tcp(Addresses { v6 }), udp(Addresses { v6 })))
    });
    let thread = client_at.recv().expect("the client starts");
    let mac = CLIENT_MAC.map(|byte| format!("{byte:02x}")).join(":");
    sh(&format!("ip link set c1 address {mac} netns {thread}"));
    ready.send(()).expect("the client waits");
    let refused = Err(ErrorKind::ConnectionRefused);
    assert_eq!(
        client.join().expect("the client"),
        [(refused, refused), (refused, refused)]
    );
}

fn tcp(addresses: Addresses) -> Result<(), ErrorKind> {
    let vip: SocketAddr = addresses.vip(port::EMPTY_REJECT);
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE).map_err(|e| e.kind())?;
    stream.read_exact(&mut [0]).map_err(|e| e.kind())
}

fn udp(addresses: Addresses) -> Result<(), ErrorKind> {
    let any = if addresses.v6 { "[::]:0" } else { "0.0.0.0:0" };
    let exchange = || {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(addresses.vip(port::DNS_EMPTY))?;
        socket.send(b"question")?;
        socket.recv(&mut [0; 64]).map(|_| ())
    };
    exchange().map_err(|error: std::io::Error| error.kind())
}
