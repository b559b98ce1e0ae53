//! Who is admitted to the service, and whether what they say is encrypted: what the options say, checked, and files read again
//! at SIGHUP.

use std::fmt::Display;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::HttpArgs,
    http::{Admits, Gate, RateLimits, Tls},
    keys::KeyRing,
};

/// The gate that these options describe. Refuses to let other machines in without keys, unless told to.
pub(super) fn gate(args: &HttpArgs) -> anyhow::Result<Gate> {
    let rates = RateLimits::new(args.rate_limit.iter().map(|limit| (limit.scope, limit.per_minute)));
    Ok(Gate::new(admits(args)?, rates))
}

fn admits(args: &HttpArgs) -> anyhow::Result<Admits> {
    let local = args.listen.ip().to_canonical().is_loopback();
    match (&args.keys, args.allow_unauthenticated) {
        (Some(_), true) => bail!("--keys and --allow-unauthenticated contradict each other; give one of them"),
        (None, true) => Ok(Admits::Anyone),
        (None, false) if local => Ok(Admits::Local),
        (None, false) => bail!(
            "other machines can reach {}, and there are no keys: whoever reaches it could change the model. Make a key \
             (`amend keys new --scope edit --name NAME --file KEYS`) and give --keys KEYS, or listen on a loopback address, or \
             say --allow-unauthenticated",
            args.listen
        ),
        (Some(path), false) => {
            let ring = KeyRing::read(path)?;
            if ring.is_empty() {
                tracing::warn!("the key file has no keys: nobody is admitted until one is added and SIGHUP is sent");
            }
            if !local && args.tls_cert.is_none() {
                tracing::warn!(
                    "keys travel in clear text to {}; give --tls-cert and --tls-key, or put a proxy with TLS before it",
                    args.listen
                );
            }
            let (read, path) = (ring.clone(), path.clone());
            at_hangup("keys", move || read.reload(&path).map(drop))?;
            Ok(Admits::Keys(ring))
        }
    }
}

/// The certificate that these options name.
pub(super) fn tls(args: &HttpArgs) -> anyhow::Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let tls = Tls::read(certificate, key)?;
    let again = tls.clone();
    at_hangup("certificate", move || again.reload())?;
    Ok(Some(tls))
}

/// Reads something again at each SIGHUP. What can not be read changes nothing.
fn at_hangup<E: Display>(
    what: &'static str,
    reload: impl Fn() -> Result<(), E> + Send + 'static,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("watching for SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match reload() {
                Ok(()) => tracing::info!(what, "read again"),
                Err(error) => tracing::error!(what, %error, "could not be read again, and stays as it was"),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        keys::{Scope, file},
    };

    fn admitted(options: &[&str]) -> Result<Admits, String> {
        let args = ["amend", "serve", "--model", "m", "--editor", "e"].iter().chain(options).map(OsString::from);
        let Command::Serve(args) = Cli::from_args(args).unwrap().command else { panic!("not serve") };
        admits(&args.http).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn without_keys_only_this_machine_is_let_in_unless_told() {
        for local in ["127.0.0.1:0", "[::1]:0", "127.9.9.9:80"] {
            assert!(matches!(admitted(&["--listen", local]), Ok(Admits::Local)), "{local}");
        }
        for open in ["0.0.0.0:8080", "[::]:8080", "10.1.2.3:80"] {
            let refused = admitted(&["--listen", open]).unwrap_err();
            assert!(
                refused.contains(open) && refused.contains("--keys") && refused.contains("amend keys new"),
                "{refused}"
            );
            assert!(matches!(admitted(&["--listen", open, "--allow-unauthenticated"]), Ok(Admits::Anyone)));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let keys = path.to_str().unwrap();
        assert!(admitted(&["--keys", keys]).unwrap_err().contains(keys), "no such file");
        file::add(&path, "ci", &[Scope::Edit]).unwrap();
        for listen in ["127.0.0.1:0", "0.0.0.0:8080"] {
            assert!(
                matches!(admitted(&["--listen", listen, "--keys", keys]), Ok(Admits::Keys(ring)) if ring.len() == 1)
            );
        }
        assert!(admitted(&["--keys", keys, "--allow-unauthenticated"]).unwrap_err().contains("contradict"));
    }
}
