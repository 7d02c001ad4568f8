//! A PostgreSQL server of our own, in a temporary folder, on a Unix socket.

use std::{
    fs,
    io::{self, Error},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use tokio_postgres::Config;

const USER: &str = "reauth";

pub struct Server {
    bin: PathBuf,
    dir: TempDir,
    /// The user and group of the server, if it is not ours: PostgreSQL does not run as root.
    owner: Option<(u32, u32)>,
}

impl Server {
    pub fn start() -> io::Result<Self> {
        let server = Self { bin: newest_bin()?, dir: tempfile::tempdir()?, owner: owner()? };
        if let Some((user, group)) = server.owner {
            chown(server.dir.path(), Some(user), Some(group))?;
        }
        let encoding = ["--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync"];
        server.run("initdb", server.program("initdb").args(["--username", USER]).args(encoding))?;
        server.begin()?;
        Ok(server)
    }

    /// Starts the server again after [`stop`](Self::stop).
    pub fn begin(&self) -> io::Result<()> {
        let options = format!("-c listen_addresses= -c fsync=off -k {}", self.dir.path().display());
        let log = self.dir.path().join("log");
        self.run(
            "pg_ctl start",
            self.program("pg_ctl").args(["start", "-w", "-o", &options, "-l"]).arg(log),
        )
    }

    /// Ends the server, and every connection.
    pub fn stop(&self) -> io::Result<()> {
        self.run("pg_ctl stop", self.program("pg_ctl").args(["stop", "-w", "-m", "fast"]))
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(self.dir.path()).user(USER).dbname("postgres");
        config
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.current_dir(self.dir.path()).arg("-D").arg(self.dir.path().join("data"));
        // The server inherits these, so they must not be pipes.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }

    fn run(&self, what: &str, command: &mut Command) -> io::Result<()> {
        let status = command.status()?;
        if status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        Err(Error::other(format!("{what}: {status}\n{log}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // `status` fails if the server was stopped before.
        if self.program("pg_ctl").arg("status").status().is_ok_and(|status| status.success()) {
            let _ = self.program("pg_ctl").args(["stop", "-w", "-m", "immediate"]).status();
        }
    }
}

/// Debian keeps the programs outside PATH, in a folder for each version.
fn newest_bin() -> io::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .max_by_key(|bin| version_of(bin))
        .ok_or_else(|| Error::other("PostgreSQL is missing: apt-get install postgresql"))
}

fn version_of(bin: &Path) -> u32 {
    let name = bin.parent().and_then(Path::file_name);
    name.and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default()
}

fn owner() -> io::Result<Option<(u32, u32)>> {
    let id = |args: &[&str]| -> io::Result<u32> {
        let output = Command::new("id").args(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().map_err(|_| Error::other(format!("id {args:?} failed")))
    };
    if id(&["-u"])? != 0 {
        return Ok(None);
    }
    Ok(Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?)))
}
