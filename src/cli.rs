//! The command line: subcommands and flags. Settings come from the environment alone.

use crate::config;
use clap::{Args, Parser, Subcommand};

/// The gate in front of sandboxes.
#[derive(Debug, Parser)]
#[command(name = "sandgate", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gate (also without a subcommand)
    #[command(after_help = config::reference())]
    Serve(ServeArgs),
    /// Run the gate with an API, a runner and sample sandboxes inside, to try it without anything else
    Demo(DemoArgs),
    /// Tell whether this machine, the configuration and what it names fit together: PASS, WARN or FAIL with a remedy
    ///
    /// Reads the configuration as serve does; run it as the same user, in the same container or unit. Leaves with 1
    /// when an item failed.
    Doctor(DoctorArgs),
}

#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Check the configuration and leave: 0 when it is good, 2 with every mistake otherwise
    #[arg(long)]
    pub check_config: bool,
    /// Print every setting in force and where it comes from, without secrets, and leave
    #[arg(long)]
    pub print_config: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Port to listen on
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Domain of the preview hosts, e.g. preview.example.com: does any name in it resolve?
    #[arg(long)]
    pub domain: Option<String>,
}

impl Cli {
    /// What to do: `serve` when nothing is said.
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.serve))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["sandgate"], arguments].concat()).map(Cli::into_command)
    }

    #[test]
    fn serve_is_the_default_and_takes_its_flags_with_and_without_its_name() {
        for (arguments, check, print) in [
            (&[][..], false, false),
            (&["serve"], false, false),
            (&["--check-config"], true, false),
            (&["serve", "--print-config"], false, true),
            (&["serve", "--check-config", "--print-config"], true, true),
        ] {
            let Ok(Command::Serve(serve)) = parse(arguments) else { panic!("{arguments:?}") };
            assert_eq!((serve.check_config, serve.print_config), (check, print), "{arguments:?}");
        }
    }

    #[test]
    fn doctor_takes_a_domain() {
        let Ok(Command::Doctor(doctor)) = parse(&["doctor", "--domain", "preview.example"]) else { panic!() };
        assert_eq!(doctor.domain.as_deref(), Some("preview.example"));
        assert!(matches!(parse(&["doctor"]), Ok(Command::Doctor(DoctorArgs { domain: None }))));
    }

    #[test]
    fn demo_takes_a_port_and_nothing_unknown_is_taken() {
        assert!(matches!(parse(&["demo"]), Ok(Command::Demo(DemoArgs { port: 4000 }))));
        assert!(matches!(parse(&["demo", "--port", "1"]), Ok(Command::Demo(DemoArgs { port: 1 }))));
        for arguments in [&["demo", "--port", "65536"][..], &["serve", "--port", "1"], &["stop"], &["--prot"]]
        {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
