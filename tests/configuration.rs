//! The binary's face to an operator: `--check-config` and `--print-config`, with real files and a real environment.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

const CANARY: &str = "canary-0123456789-0123456789-0123456789";

#[test]
fn a_good_configuration_is_ok_and_its_warnings_go_to_stderr() {
    let directory = Directory::new("good");
    let output = sandgate(&directory, &["serve", "--check-config"], &good());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output), "OK\n");
    assert_eq!(stderr(&output), "");
    let mut risky = good();
    risky.push(("PROXY_API_KEY", "super_secret_key"));
    let output = sandgate(&directory, &["--check-config"], &risky);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "OK\n"));
    assert!(stderr(&output).starts_with("warning: PROXY_API_KEY"), "{}", stderr(&output));
}

#[test]
fn every_mistake_is_printed_and_the_exit_code_is_2_with_and_without_the_check() {
    let directory = Directory::new("bad");
    fs::write(directory.0.join(".env"), "ENABLE_TLS=true\nnonsense\n").expect("writable");
    for arguments in [&["--check-config"][..], &["serve"], &["--print-config"]] {
        let output = sandgate(
            &directory,
            arguments,
            &[("PROXY_PORT", "0"), ("SANDGATE_DRIVE", "epoll"), ("OTHER", "x")],
        );
        assert_eq!(code(&output), 2, "{arguments:?}");
        let stderr = stderr(&output);
        for start in [
            "CFG_INVALID PROXY_PORT=\"0\"",
            "CFG_REQUIRED PROXY_PROTOCOL",
            "CFG_REQUIRED PROXY_API_KEY",
            "CFG_REQUIRED DAYTONA_API_URL",
            "CFG_UNSUPPORTED ENABLE_TLS=\"true\"",
            "CFG_UNKNOWN SANDGATE_DRIVE: there is no such variable; did you mean SANDGATE_DRIVER?",
            "CFG_FILE .env:2",
        ] {
            assert!(stderr.lines().any(|line| line.starts_with(start)), "{start} is not in\n{stderr}");
        }
        assert_eq!(stderr.lines().count(), 7, "{stderr}");
    }
}

#[test]
fn settings_are_printed_with_their_origin_and_without_secrets() {
    let directory = Directory::new("print");
    fs::write(directory.0.join(".env"), format!("REDIS_PASSWORD={CANARY}\nPROXY_PORT=5000\n"))
        .expect("writable");
    let mut environment = good();
    let url = format!("https://user:{CANARY}@api.example.com/api");
    environment.extend([("PROXY_API_KEY", CANARY), ("DAYTONA_API_URL", &url)]);
    let output = sandgate(&directory, &["--print-config"], &environment);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let stdout = stdout(&output);
    for line in [
        "PROXY_PORT=5000  # .env",
        "PROXY_API_KEY=[redacted]  # environment",
        "REDIS_PASSWORD=[redacted]  # .env",
        "DAYTONA_API_URL=https://[redacted]@api.example.com/api  # environment",
        "SANDGATE_DRIVER=auto  # default",
    ] {
        assert!(stdout.lines().any(|found| found == line), "{line} is not in\n{stdout}");
    }
    assert!(!stdout.contains(CANARY) && !stderr(&output).contains(CANARY));
}

#[test]
fn help_lists_the_variables_and_a_wrong_flag_is_refused() {
    let directory = Directory::new("help");
    let help = sandgate(&directory, &["serve", "--help"], &[]);
    assert_eq!(code(&help), 0);
    for text in
        ["--check-config", "--print-config", "PROXY_PORT", "SANDGATE_RUNNER_IDLE_MS", "10 to 69999 ms"]
    {
        assert!(stdout(&help).contains(text), "{text} is not in\n{}", stdout(&help));
    }
    assert_eq!(code(&sandgate(&directory, &["serve", "--chek-config"], &[])), 2);
    let version = sandgate(&directory, &["--version"], &[]);
    assert_eq!(stdout(&version), format!("sandgate {}\n", env!("CARGO_PKG_VERSION")));
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf_8_is_a_mistake_and_foreign_ones_are_none() {
    use std::os::unix::ffi::OsStrExt;
    let directory = Directory::new("utf8");
    let broken = std::ffi::OsStr::from_bytes(b"\xff");
    let output = command(&directory, &["--check-config"], &good())
        .env("SANDGATE_LISTEN", broken)
        .env("OTHER", broken)
        .output()
        .expect("the binary was just built");
    assert_eq!(code(&output), 2);
    assert_eq!(
        stderr(&output),
        "CFG_INVALID SANDGATE_LISTEN: the value is not UTF-8; set it to plain text\n"
    );
}

fn good() -> Vec<(&'static str, &'static str)> {
    vec![
        ("PROXY_PORT", "4000"),
        ("PROXY_PROTOCOL", "http"),
        ("PROXY_API_KEY", "0123456789abcdef0123456789abcdef"),
        ("DAYTONA_API_URL", "http://127.0.0.1:3000/api"),
        ("SANDGATE_ALLOWED_DOMAINS", "proxy.example.com"),
    ]
}

fn sandgate(directory: &Directory, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(directory, arguments, environment).output().expect("the binary was just built")
}

fn command(directory: &Directory, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandgate"));
    command.current_dir(&directory.0).env_clear().envs(environment.iter().copied()).args(arguments);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("the gate prints UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("the gate prints UTF-8")
}

/// A working directory of its own, so that no `.env` of the machine is read.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("configuration-{name}"));
        let _absent_the_first_time = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("cargo's directory for tests is writable");
        Self(path)
    }
}
