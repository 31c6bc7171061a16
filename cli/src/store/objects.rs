//! Object stores: S3, Google Cloud Storage, Azure and HTTP, opened when a URL first names them.
//!
//! Credentials and endpoints come from the variables that the tools of these stores use, such as
//! `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::object_store::{self, ObjectStore};
use url::Url;

use super::VisibleFiles;

/// The stores of a session: registered ones, and those that URLs name.
#[derive(Debug, Default)]
pub(super) struct Stores {
    open: DefaultObjectStoreRegistry,
}

impl ObjectStoreRegistry for Stores {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        self.open.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.open.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if let Ok(store) = self.open.get_store(url) {
            return Ok(store);
        }
        let store = open_with(url, &[])?;
        self.open.register_store(url, Arc::clone(&store));
        Ok(store)
    }
}

/// Whether a table's option is that of its store, such as `aws.access_key_id`.
pub(crate) fn is_option(name: &str) -> bool {
    ["aws.", "gcp.", "azure."].iter().any(|prefix| name.starts_with(prefix))
}

/// Opens the store of `url` with these options of a table's store.
pub(crate) fn open_with(url: &Url, options: &[(String, String)]) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(VisibleFiles { files: open(url, options)? }))
}

/// The option of a store that `name` means: `aws.region` is `aws_region`, or `region`.
#[cfg(feature = "object-stores")]
fn key<K: std::str::FromStr>(name: &str, store: &str, prefix: &str) -> Result<K> {
    let own = name.strip_prefix(prefix).and_then(|name| name.strip_prefix('.'));
    let keys = own.map(|own| [own.to_owned(), format!("{prefix}_{own}")]);
    let key = keys.iter().flatten().find_map(|key| key.parse().ok());
    key.ok_or_else(|| {
        DataFusionError::Plan(format!(
            "there is no option '{name}' of {store}; options are named like the variables, for \
             example 'aws.access_key_id'"
        ))
    })
}

/// Opens the store of `url`, with options beside those of the variables.
#[cfg(feature = "object-stores")]
fn open(url: &Url, options: &[(String, String)]) -> Result<Arc<dyn ObjectStore>> {
    use ::object_store::aws::AmazonS3Builder;
    use ::object_store::azure::MicrosoftAzureBuilder;
    use ::object_store::gcp::GoogleCloudStorageBuilder;
    use ::object_store::http::HttpBuilder;
    use ::object_store::{ClientOptions, ObjectStoreScheme, RetryConfig};

    // The library retries for three minutes, longer than a user waits for a mistyped address.
    let retry = RetryConfig {
        max_retries: 3,
        retry_timeout: Duration::from_secs(30),
        ..RetryConfig::default()
    };
    let unknown = || DataFusionError::Plan(unknown_scheme(url));
    let (scheme, _) = ObjectStoreScheme::parse(url).map_err(|_| unknown())?;
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let mut builder = AmazonS3Builder::from_env();
            for (name, value) in options {
                builder = builder.with_config(key(name, "S3", "aws")?, value);
            }
            Arc::new(builder.with_url(url.as_str()).with_retry(retry).build()?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let mut builder = GoogleCloudStorageBuilder::from_env();
            for (name, value) in options {
                builder = builder.with_config(key(name, "Google Cloud Storage", "gcp")?, value);
            }
            Arc::new(builder.with_url(url.as_str()).with_retry(retry).build()?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let mut builder = MicrosoftAzureBuilder::from_env();
            for (name, value) in options {
                builder = builder.with_config(key(name, "Azure", "azure")?, value);
            }
            Arc::new(builder.with_url(url.as_str()).with_retry(retry).build()?)
        }
        ObjectStoreScheme::Http => {
            if let Some((name, _)) = options.first() {
                return Err(DataFusionError::Plan(format!(
                    "'{name}' is no option of an HTTP server, which has none"
                )));
            }
            let host = &url[..url::Position::BeforePath];
            let options = ClientOptions::new().with_allow_http(true);
            let builder = HttpBuilder::new().with_client_options(options);
            Arc::new(builder.with_url(host).with_retry(retry).build()?)
        }
        _ => return Err(unknown()),
    })
}

#[cfg(not(feature = "object-stores"))]
fn open(url: &Url, _: &[(String, String)]) -> Result<Arc<dyn ObjectStore>> {
    let _unused = Duration::ZERO;
    Err(DataFusionError::Plan(format!(
        "'{url}' is in an object store, and this build has none; build gatework with the feature \
         object-stores"
    )))
}

fn unknown_scheme(url: &Url) -> String {
    let scheme = url.scheme();
    format!("there is no store for '{scheme}://'; known are file, s3, gs, az, abfs, http and https")
}

/// Describes what a store answered.
pub(crate) fn explain(error: &object_store::Error) -> String {
    let text = chain(error);
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let is_refused = matches!(
        error,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }
    );
    if has(&["NoSuchBucket", "ContainerNotFound"]) {
        return "there is no such bucket".to_owned();
    }
    if is_refused
        || has(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403 Forbidden"])
    {
        return "the store refuses access; check the credentials, for S3 AWS_ACCESS_KEY_ID and \
                AWS_SECRET_ACCESS_KEY"
            .to_owned();
    }
    if has(&["169.254.169.254"]) {
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                AWS_SKIP_SIGNATURE=true for a public bucket"
            .to_owned();
    }
    if has(&["error sending request", "ConnectError", "connection closed", "dns error"]) {
        return format!("the store cannot be reached: {}", cause(error));
    }
    match error {
        object_store::Error::NotFound { path, .. } => format!("there is no object '{path}'"),
        _ => text,
    }
}

/// The messages of an error and its sources.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        source = error.source();
    }
    text
}

/// The message of the innermost source.
fn cause(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(all(test, feature = "object-stores"))]
mod tests {
    use object_store::aws::AmazonS3ConfigKey;
    use object_store::azure::AzureConfigKey;
    use object_store::gcp::GoogleConfigKey;

    use super::key;

    #[test]
    fn options_have_the_names_of_the_stores() {
        let s3 = |name| key::<AmazonS3ConfigKey>(name, "S3", "aws").ok();
        assert_eq!(s3("aws.region"), Some(AmazonS3ConfigKey::Region));
        assert_eq!(s3("aws.access_key_id"), Some(AmazonS3ConfigKey::AccessKeyId));
        assert_eq!(s3("aws.endpoint"), Some(AmazonS3ConfigKey::Endpoint));
        assert!(s3("aws.allow_http").is_some() && s3("aws.colour").is_none());
        assert_eq!(s3("gcp.service_account"), None);
        let google = |name| key::<GoogleConfigKey>(name, "Google Cloud Storage", "gcp").ok();
        assert_eq!(google("gcp.service_account_path"), Some(GoogleConfigKey::ServiceAccount));
        assert_eq!(google("gcp.service_account_key"), Some(GoogleConfigKey::ServiceAccountKey));
        let azure = |name| key::<AzureConfigKey>(name, "Azure", "azure").ok();
        assert_eq!(azure("azure.account_name"), Some(AzureConfigKey::AccountName));
    }
}
