//! Authentication of requests to workers: a token, and TLS certificates of both sides.

use std::{fmt, sync::Arc, time::Duration};

use datafusion::error::{DataFusionError, Result};
use subtle::ConstantTimeEq;
use tonic::{
    Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig},
};
use url::Url;

/// A peer that sends nothing for this time gets an HTTP/2 ping.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
/// A peer that does not answer a ping within this time is lost.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1200);
/// Time after which a broken connection is detected.
pub(super) const FAILURE_DETECTION: Duration = KEEPALIVE_INTERVAL.saturating_add(KEEPALIVE_TIMEOUT);
/// Maximum time of a ping's answer while other data arrives. The answer queues behind rows.
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP/2 window of one stream of rows. The window of a connection is unlimited: otherwise streams
/// without a reader would block the others. A reader acknowledges each half window, which is the
/// only sign of life while rows arrive without a pause.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Maximum length of an error's text, which travels as a header.
const MAX_HEADER_BYTES: u32 = 1 << 20;

/// Header with the version of the sender.
const VERSION_KEY: &str = "gatework-version";
const TOKEN_KEY: &str = "authorization";

/// Version that all members of a cluster must have: plans have the same meaning only between equal
/// versions.
pub(super) fn version() -> String {
    let (own, datafusion) = (env!("CARGO_PKG_VERSION"), datafusion::DATAFUSION_VERSION);
    format!("gatework {own} on DataFusion {datafusion}")
}

/// Credentials of a cluster's members; all members have the same.
///
/// By default connections are neither encrypted nor authenticated. Use the default on one machine
/// only.
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
    /// A peer in the same process needs no keep-alive, however busy the process is.
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
    /// Sends this token with every request, and refuses requests without it. Whitespace around it
    /// is ignored.
    ///
    /// # Errors
    /// If the token is empty, or has characters other than visible ASCII and blanks.
    pub fn with_token(mut self, token: &str) -> Result<Self> {
        let token = token.trim();
        let value: Option<MetadataValue<Ascii>> = format!("Bearer {token}").parse().ok();
        match value.filter(|_| !token.is_empty()) {
            Some(mut value) => {
                value.set_sensitive(true);
                self.token = Some(value);
            }
            None => {
                let what = "a token is one line of at least one visible ASCII character";
                return Err(DataFusionError::Configuration(what.into()));
            }
        }
        Ok(self)
    }

    /// Encrypts connections; both sides present a certificate of this authority. All arguments are
    /// PEM: this member's certificate (for the host name in its address), its key, and the
    /// authority's certificate.
    ///
    /// # Errors
    /// If an argument is not valid PEM, or the key does not belong to the certificate.
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
            let what = "TLS needs a certificate, its key and its authority, all in PEM format";
            DataFusionError::Configuration(format!("{what}: {reason}"))
        };
        self.server().map_err(wrong)?;
        Ok(self)
    }

    pub(super) fn in_process() -> Self {
        Self { in_process: true, ..Self::default() }
    }

    /// Whether connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// The client side of a connection to worker `url`.
    pub(super) fn endpoint(&self, url: &Url) -> Result<Endpoint> {
        let wrong =
            |what: &str| Err(DataFusionError::Configuration(format!("worker {url}: {what}")));
        match (url.scheme(), &self.tls) {
            ("http", None) | ("https", Some(_)) => {}
            ("http", Some(_)) => {
                return wrong(
                    "its address must begin with https://, because certificates are configured",
                );
            }
            ("https", None) => {
                return wrong("an https:// address needs certificates on this side, too");
            }
            _ => return wrong("its address must begin with http:// or https://"),
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

    /// The server side of connections.
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

    /// Adds the version and the token to a request's headers.
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

    /// Refuses a request with a wrong token or another version.
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
                let other = other.unwrap_or("an unknown version");
                let what = format!("this worker is {own}, the query comes from {other}");
                Err(Status::failed_precondition(what))
            }
        }
    }
}

/// The innermost cause of a network error: "connection refused", not "transport error".
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

/// Maximum time for a worker to accept a connection and send its version.
pub(super) const CONNECT_TIMEOUT: Duration = KEEPALIVE_TIMEOUT;
