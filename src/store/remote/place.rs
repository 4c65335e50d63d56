//! From an address to the client of a service. Knows no record and no environment.

use std::{collections::BTreeMap, sync::Arc};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder, local::LocalFileSystem,
    multipart::MultipartStore, path::Path,
};

use super::{
    super::digest::Digest,
    Tuning,
    error::{RemoteError, Result},
};

/// Where a remote's objects are.
pub(super) struct Place {
    pub store: Arc<dyn ObjectStore>,
    /// Uploads in parts that can be sent again one by one; a local folder has no use for that.
    pub parts: Option<Arc<dyn MultipartStore>>,
    pub prefix: Path,
    /// Whether a name can be taken once.
    pub writable: bool,
}

impl Place {
    /// The client for an address.
    pub(super) fn open(url: &str, options: &BTreeMap<String, String>, tuning: &Tuning) -> Result<Self> {
        let bad = |why: &str| RemoteError::Url { url: url.to_owned(), why: why.to_owned() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no `://`"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains(['?', '#']) {
            return Err(bad("it must not have a `?` or a `#`"));
        }
        if host.is_empty() != (scheme == "file") {
            return Err(bad(if host.is_empty() {
                "it names no bucket"
            } else {
                "a folder needs three slashes"
            }));
        }
        let prefix = Path::from_url_path(path).map_err(|e| bad(&e.to_string()))?;
        let settings = |source| RemoteError::Settings { url: url.to_owned(), source: Box::new(source) };
        let service = Service { scheme, host, options, tuning };
        service.client(prefix).map_err(settings)?.ok_or_else(|| bad("its scheme is unknown"))
    }

    /// The object of a fixed name.
    pub(super) fn object(&self, name: &str) -> Path {
        self.prefix.parts().chain(Path::from(name).parts()).collect()
    }

    /// The object of a digest: `blob/aa/<62 hex>`.
    pub(super) fn sharded(&self, kind: &str, digest: &Digest) -> Path {
        let hex = digest.to_string();
        self.object(&format!("{kind}/{}/{}", &hex[..2], &hex[2..]))
    }
}

struct Service<'a> {
    scheme: &'a str,
    host: &'a str,
    options: &'a BTreeMap<String, String>,
    tuning: &'a Tuning,
}

/// Gives a builder the options that it knows.
macro_rules! with_options {
    ($builder:expr, $options:expr) => {
        $options.iter().fold($builder, |builder, (key, value)| {
            match key.to_ascii_lowercase().parse() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder, // the environment holds much that is not for us
            }
        })
    };
}

impl Service<'_> {
    fn client(&self, prefix: Path) -> object_store::Result<Option<Place>> {
        let place = |store: Arc<dyn ObjectStore>, parts| Place { store, parts, prefix, writable: true };
        Ok(Some(match self.scheme {
            "s3" => {
                let builder =
                    AmazonS3Builder::new().with_client_options(self.network()).with_retry(self.retry());
                let builder = with_options!(builder, self.options).with_bucket_name(self.host);
                let store = Arc::new(builder.build()?);
                place(store.clone(), Some(store))
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::new()
                    .with_client_options(self.network())
                    .with_retry(self.retry());
                let builder = with_options!(builder, self.options).with_bucket_name(self.host);
                let store = Arc::new(builder.build()?);
                place(store.clone(), Some(store))
            }
            "az" => {
                let builder =
                    MicrosoftAzureBuilder::new().with_client_options(self.network()).with_retry(self.retry());
                let builder = with_options!(builder, self.options).with_container_name(self.host);
                let store = Arc::new(builder.build()?);
                place(store.clone(), Some(store))
            }
            "http" | "https" => {
                let builder = HttpBuilder::new().with_url(format!("{}://{}", self.scheme, self.host));
                let network = self.network().with_allow_http(self.scheme == "http");
                let builder = builder.with_client_options(network).with_retry(self.retry());
                Place { writable: false, ..place(Arc::new(builder.build()?), None) }
            }
            "file" => place(Arc::new(LocalFileSystem::new().with_fsync(true)), None),
            _ => return Ok(None),
        }))
    }

    /// No limit to a whole body; `fetch` and `upload` watch for progress themselves.
    fn network(&self) -> ClientOptions {
        let plain = |(key, value): (&String, &String)| {
            key.to_ascii_lowercase().contains("endpoint") && value.starts_with("http://")
        };
        ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(self.tuning.connect)
            // Who writes `http://` for the endpoint has said so.
            .with_allow_http(self.options.iter().any(plain))
    }

    /// A quick second try; patience is above.
    fn retry(&self) -> RetryConfig {
        let backoff = BackoffConfig { init_backoff: self.tuning.pause, ..BackoffConfig::default() };
        RetryConfig { max_retries: 1, backoff, ..RetryConfig::default() }
    }
}
