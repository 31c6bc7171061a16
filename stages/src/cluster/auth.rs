//! Who may ask a worker: a token, and certificates of both sides.

use std::{fmt, sync::Arc, time::Duration};

use datafusion::error::{DataFusionError, Result};
use subtle::ConstantTimeEq;
use tonic::{
    Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig},
};
use url::Url;

/// A peer that says nothing for so long is asked whether it is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
/// A peer that does not answer in this time is lost.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1200);
/// How long a break goes unseen.
pub(super) const FAILURE_DETECTION: Duration = KEEPALIVE_INTERVAL.saturating_add(KEEPALIVE_TIMEOUT);
/// How long the answer to a ping may take behind the rows that are on their way, while something comes.
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// What HTTP/2 may have on its way of one stream of rows. All of a connection together have no limit of their own: else
/// those that nobody reads would hold up the others. Whoever reads says so whenever half of it has come, which is the only
/// sign of life while rows come without a pause.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// How long the text of an error may be, which travels as a header.
const MAX_HEADER_BYTES: u32 = 1 << 20;

/// Under which name a request says which version it is from.
const VERSION_KEY: &str = "gatework-version";
const TOKEN_KEY: &str = "authorization";

/// The version that all of a cluster have: plans mean the same only where these are the same.
pub(super) fn version() -> String {
    let (own, datafusion) = (env!("CARGO_PKG_VERSION"), datafusion::DATAFUSION_VERSION);
    format!("gatework {own} on DataFusion {datafusion}")
}

/// What the members of a cluster show each other. All have the same.
///
/// Without anything, connections are neither encrypted nor asked for a password: for one machine only.
///
/// ```
/// use gatework_stages::cluster::ClusterAuth;
///
/// let access = ClusterAuth::default().with_token("a long random string")?;
/// assert!(!access.is_encrypted());
/// assert!(ClusterAuth::default().with_token("").is_err());
/// # Ok::<_, datafusion::error::DataFusionError>(())
/// ```
#[derive(Clone, Default)]
pub struct ClusterAuth {
    /// `Bearer` and the token.
    token: Option<MetadataValue<Ascii>>,
    tls: Option<Arc<Tls>>,
    /// Who is in the same process is there, however busy that is.
    in_process: bool,
}

struct Tls {
    identity: Identity,
    authority: Certificate,
}

impl fmt::Debug for ClusterAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuth")
            .field("token", &self.token.is_some())
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

impl ClusterAuth {
    /// Every request carries this token, and those without it are refused. Blanks around it are no part of it.
    ///
    /// # Errors
    /// If it is empty, or has other characters than visible ones of ASCII and blanks.
    pub fn with_token(mut self, token: &str) -> Result<Self> {
        let token = token.trim();
        let value: Option<MetadataValue<Ascii>> = format!("Bearer {token}").parse().ok();
        match value.filter(|_| !token.is_empty()) {
            Some(mut value) => {
                value.set_sensitive(true);
                self.token = Some(value);
            }
            None => {
                let what = "a token is one line of visible ASCII characters, at least one";
                return Err(DataFusionError::Configuration(what.into()));
            }
        }
        Ok(self)
    }

    /// Connections are encrypted, and both sides show a certificate of this authority. All three are in PEM format:
    /// the certificate of this member (for the host name by which others call it), its key, and the authority's
    /// certificate.
    ///
    /// # Errors
    /// If they are not what they are to be, or the key is another's.
    pub fn with_tls(
        mut self,
        certificate: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
        authority: impl AsRef<[u8]>,
    ) -> Result<Self> {
        let identity = Identity::from_pem(certificate, key);
        let authority = Certificate::from_pem(authority);
        self.tls = Some(Arc::new(Tls { identity, authority }));
        let wrong = |error: DataFusionError| {
            let reason = cause(&error);
            let what =
                "a certificate, its key and that of its authority, all in PEM format, are needed";
            DataFusionError::Configuration(format!("{what}: {reason}"))
        };
        self.server().map_err(wrong)?;
        Ok(self)
    }

    pub(super) fn in_process() -> Self {
        Self { in_process: true, ..Self::default() }
    }

    /// Whether connections are.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// How a worker is reached.
    pub(super) fn endpoint(&self, url: &Url) -> Result<Endpoint> {
        let wrong =
            |what: &str| Err(DataFusionError::Configuration(format!("worker {url}: {what}")));
        match (url.scheme(), &self.tls) {
            ("http", None) | ("https", Some(_)) => {}
            ("http", Some(_)) => {
                return wrong("its address begins with https:// where there are certificates");
            }
            ("https", None) => {
                return wrong("an https:// address needs certificates on this side, too");
            }
            _ => return wrong("its address begins with http:// or https://"),
        }
        let endpoint = Endpoint::from_shared(url.to_string())
            .map_err(external)?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEADER_BYTES);
        if self.in_process {
            return Ok(endpoint);
        }
        let endpoint = endpoint
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let Some(tls) = &self.tls else { return Ok(endpoint) };
        let config = ClientTlsConfig::new()
            .identity(tls.identity.clone())
            .ca_certificate(tls.authority.clone())
            .timeout(KEEPALIVE_TIMEOUT);
        endpoint.tls_config(config).map_err(external)
    }

    /// How a worker listens.
    pub(super) fn server(&self) -> Result<Server> {
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if self.in_process {
            return Ok(server);
        }
        let server = server
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT));
        let Some(tls) = &self.tls else { return Ok(server) };
        let config = ServerTlsConfig::new()
            .identity(tls.identity.clone())
            .client_ca_root(tls.authority.clone())
            .timeout(KEEPALIVE_TIMEOUT);
        server.tls_config(config).map_err(external)
    }

    /// Puts on a request what the other side asks for.
    pub(super) fn add_credentials(&self, headers: &mut tonic::codegen::http::HeaderMap) {
        let mut metadata = MetadataMap::new();
        if let Ok(version) = version().parse() {
            metadata.insert(VERSION_KEY, version);
        }
        if let Some(token) = &self.token {
            metadata.insert(TOKEN_KEY, token.clone());
        }
        headers.extend(metadata.into_headers());
    }

    /// Refuses a request that does not show what this side asks for.
    pub(super) fn authenticate(&self, metadata: &MetadataMap) -> std::result::Result<(), Status> {
        if let Some(token) = &self.token {
            let received = metadata.get(TOKEN_KEY).map(MetadataValue::as_bytes).unwrap_or_default();
            if !bool::from(received.ct_eq(token.as_bytes())) {
                return Err(Status::unauthenticated("the token is missing or wrong"));
            }
        }
        let (own, other) =
            (version(), metadata.get(VERSION_KEY).and_then(|value| value.to_str().ok()));
        match other {
            Some(other) if other == own => Ok(()),
            other => {
                let other = other.unwrap_or("something else");
                let what = format!("this worker is {own}, the query comes from {other}");
                Err(Status::failed_precondition(what))
            }
        }
    }
}

/// What is at the bottom of an error of the network: "connection refused", not "transport error".
pub(super) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(inner) = deepest.source() {
        deepest = inner;
    }
    match deepest.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => deepest.to_string(),
    }
}

pub(super) fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// How long a worker has to accept a connection and say who it is.
pub(super) const CONNECT_TIMEOUT: Duration = KEEPALIVE_TIMEOUT;
