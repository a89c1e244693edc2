fn main() -> std::process::ExitCode {
    lb_userspace::daemon::run()
}
