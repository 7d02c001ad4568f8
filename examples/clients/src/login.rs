//! The setup of each example: a server, and a session whose token has expired.

use reqwest_reauth::{OAuthRefresh, Session, testing::AuthServer};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub struct Login {
    pub server: AuthServer,
    pub session: Session,
}

impl Login {
    /// `others` are origins in addition to the server's own.
    pub async fn expired(others: &[&str]) -> Result<Self, BoxError> {
        let server = AuthServer::start().await;
        let mut builder = Session::builder(server.login())
            .origin(server.origin())
            .refresher(OAuthRefresh::new(server.token_endpoint()))
            // For clients that set a header of their own.
            .override_authorization()
            // For clients that stream their bodies.
            .buffer_bodies(1024 * 1024);
        for origin in others {
            builder = builder.origin(origin);
        }
        let session = builder.build()?;
        server.expire_now();
        Ok(Self { server, session })
    }

    /// Checks what the server saw.
    pub fn check(&self, name: &str) {
        let counts = self.server.counts();
        assert_eq!(counts.refused, 1, "{name}: rejected calls");
        assert_eq!(counts.token_calls, 1, "{name}: refreshes");
        assert_eq!(counts.api_hits, 2, "{name}: calls");
        println!("{name}: one rejected call, one refresh, one second call");
    }
}
