//! `tls_server_config` → rustls. What rustls cannot honour is refused with what it can.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CipherSuite, InconsistentKeys, RootCertStore, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};

use super::{
    clients::{AllowedNames, AnyCertificate, NamedClients},
    file::Tls,
    stamp::{Stamp, stamp},
};
use crate::config::{ConfigError, Located};

/// No chain or bundle comes near it.
const MAX_PEM_BYTES: u64 = 1 << 20;

const SUITES: [(&str, CipherSuite); 6] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// What the section says, ready to serve.
#[derive(Debug, Clone)]
pub(super) struct Acceptor {
    pub(super) config: Arc<ServerConfig>,
    /// Whether a certificate that a client shows has been verified against the CA.
    pub(super) verifies: bool,
    /// Whether no client gets in without such a certificate.
    pub(super) demands: bool,
}

/// How clients prove themselves; the words are those of Go's `crypto/tls`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientAuth {
    No,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

/// Reads certificates and keys, and puts them together.
pub(super) struct Reader<'a> {
    /// The web configuration's name in errors.
    pub(super) origin: &'a str,
    /// Where relative paths begin.
    pub(super) base: &'a Path,
    /// Every file that was read, or was to be, as it was before.
    pub(super) read: Vec<(PathBuf, Stamp)>,
}

impl Reader<'_> {
    /// The section's meaning; `None` where it is empty.
    ///
    /// # Errors
    /// For what cannot be read, does not fit together, or is not supported.
    pub(super) fn acceptor(&mut self, section: &Located<Tls>) -> Result<Option<Acceptor>, ConfigError> {
        let tls = &section.value;
        let Some(chain) = self.material("cert", &tls.cert, &tls.cert_file)? else {
            return match said_anything(tls) {
                false => Ok(None),
                true => Err(self.wrong(
                    section,
                    "`tls_server_config` has no certificate: name one with cert_file, or remove the section to serve without TLS",
                )),
            };
        };
        let Some(key) = self.material("key", &tls.key, &tls.key_file)? else {
            return Err(self.wrong(
                section,
                "`tls_server_config` has no key for its certificate: name it with key_file",
            ));
        };
        let authority = self.material("client_ca", &tls.client_ca, &tls.client_ca_file)?;
        let provider = Arc::new(self.provider(tls)?);
        let versions = self.versions(tls)?;
        let (verifier, mode) = self.verifier(section, authority.as_ref(), &provider)?;
        let certificates = self.certificates(&chain)?;
        let private = self.private_key(&key)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|_| {
                self.wrong(
                    section,
                    "`tls_server_config`: no cipher suite is left for these TLS versions: raise max_version, or list other cipher_suites",
                )
            })?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, private)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => key.wrong(
                    self,
                    format!("does not belong to the certificate in {}: give the two that were made together", chain.place()),
                ),
                other => chain.wrong(self, format!("cannot be used: {other}: make a certificate with a SAN and an RSA, ECDSA or Ed25519 key")),
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ignore_client_order = tls.prefer_server_cipher_suites.unwrap_or(true);
        let verifies = matches!(mode, ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify);
        let demands = mode == ClientAuth::RequireAndVerify;
        Ok(Some(Acceptor { config: Arc::new(config), verifies, demands }))
    }

    /// What stands in the file or inline; an empty text counts as not given.
    fn material<'f>(
        &mut self,
        key: &'static str,
        inline: &'f Option<Located<String>>,
        file: &'f Option<Located<String>>,
    ) -> Result<Option<Material<'f>>, ConfigError> {
        let given = |value: &'f Option<Located<String>>| value.as_ref().filter(|text| !text.value.is_empty());
        match (given(inline), given(file)) {
            (None, None) => Ok(None),
            (Some(inline), None) => {
                Ok(Some(Material { key, at: inline, path: None, pem: inline.value.clone().into_bytes() }))
            }
            (None, Some(file)) => {
                let path = self.base.join(&file.value);
                self.read.push((path.clone(), stamp(&path)));
                let mut material = Material { key, at: file, path: Some(path.clone()), pem: Vec::new() };
                let taken = std::fs::File::open(&path)
                    .and_then(|file| file.take(MAX_PEM_BYTES).read_to_end(&mut material.pem));
                match taken {
                    Ok(_) => Ok(Some(material)),
                    Err(error) => Err(material.wrong(
                        self,
                        format!("cannot be read: {error}: correct the path, which is relative to this file, or let this user read it"),
                    )),
                }
            }
            (Some(inline), Some(_)) => Err(self.wrong(
                inline,
                format!("both `tls_server_config.{key}` and `tls_server_config.{key}_file` are given: remove one of the two"),
            )),
        }
    }

    fn certificates(&self, material: &Material<'_>) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&material.pem).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            _ => Err(material.wrong(
                self,
                "holds no certificate: it must have PEM blocks that begin with -----BEGIN CERTIFICATE-----",
            )),
        }
    }

    fn private_key(&self, material: &Material<'_>) -> Result<PrivateKeyDer<'static>, ConfigError> {
        const ENCRYPTED: &[u8] = b"ENCRYPTED";
        PrivateKeyDer::from_pem_slice(&material.pem).map_err(|_| {
            let encrypted = material.pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
            material.wrong(
                self,
                if encrypted {
                    "is encrypted: a daemon has nobody to ask for the pass phrase, so store it without one (openssl pkey) in a file that only its user can read"
                } else {
                    "holds no private key: it must have a PEM block that begins with -----BEGIN PRIVATE KEY-----"
                },
            )
        })
    }

    /// Cipher suites and curves. Those of TLS 1.3 are all secure, and as in the toolkit cannot be chosen.
    fn provider(&self, tls: &Tls) -> Result<CryptoProvider, ConfigError> {
        let all = ring::default_provider();
        let mut chosen = all.clone();
        if let Some(names) = tls.cipher_suites.as_ref().filter(|names| !names.is_empty()) {
            let is_13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
            chosen.cipher_suites = all.cipher_suites.iter().filter(|suite| is_13(suite)).copied().collect();
            for name in names {
                if is_tls13_suite(&name.value) {
                    continue;
                }
                let suite = SUITES.iter().find(|(known, _)| *known == name.value);
                let suite = suite.and_then(|(_, id)| all.cipher_suites.iter().find(|s| s.suite() == *id));
                let Some(suite) = suite else {
                    let known = SUITES.map(|(known, _)| known).join(", ");
                    let message = format!(
                        "`tls_server_config.cipher_suites`: {} is not supported: remove it, or use some of {known}",
                        shown(&name.value)
                    );
                    return Err(self.wrong(name, message));
                };
                chosen.cipher_suites.push(*suite);
            }
        }
        if let Some(names) = tls.curve_preferences.as_ref().filter(|names| !names.is_empty()) {
            chosen.kx_groups = names.iter().map(|name| self.curve(name)).collect::<Result<_, _>>()?;
        }
        Ok(chosen)
    }

    fn curve(&self, name: &Located<String>) -> Result<&'static dyn SupportedKxGroup, ConfigError> {
        match name.value.as_str() {
            "X25519" => Ok(ring::kx_group::X25519),
            "CurveP256" => Ok(ring::kx_group::SECP256R1),
            "CurveP384" => Ok(ring::kx_group::SECP384R1),
            other => Err(self.wrong(
                name,
                format!(
                    "`tls_server_config.curve_preferences`: {} is not supported: use some of X25519, CurveP256, CurveP384",
                    shown(other)
                ),
            )),
        }
    }

    fn versions(&self, tls: &Tls) -> Result<Vec<&'static SupportedProtocolVersion>, ConfigError> {
        let version = |key: &str, given: &Option<Located<String>>, default: u8| {
            match given {
            None => Ok(default),
            Some(word) => match word.value.as_str() {
                "TLS12" => Ok(12),
                "TLS13" => Ok(13),
                "TLS10" | "TLS11" => Err(self.wrong(
                    word,
                    format!("`tls_server_config.{key}`: {} is no longer secure and not supported: write TLS12 or TLS13", word.value),
                )),
                other => Err(self.wrong(
                    word,
                    format!("`tls_server_config.{key}`: {} is no TLS version: write TLS12 or TLS13", shown(other)),
                )),
            },
        }
        };
        let (min, max) =
            (version("min_version", &tls.min_version, 12)?, version("max_version", &tls.max_version, 13)?);
        match (min, max, &tls.min_version) {
            (12, 12, _) => Ok(vec![&TLS12]),
            (13, 13, _) => Ok(vec![&TLS13]),
            (13, 12, Some(place)) => Err(self.wrong(
                place,
                "`tls_server_config.min_version` is above max_version, so that no client could connect: lower it or raise max_version",
            )),
            _ => Ok(vec![&TLS13, &TLS12]),
        }
    }

    /// The rules of the toolkit, and one more: certificates are verified against a CA that is named. Go would take
    /// every CA the system trusts, and with it anybody who owns a domain.
    fn verifier(
        &self,
        section: &Located<Tls>,
        authority: Option<&Material<'_>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Arc<dyn ClientCertVerifier>, ClientAuth), ConfigError> {
        let tls = &section.value;
        let mode = self.client_auth(tls)?;
        let verifier: Arc<dyn ClientCertVerifier> = match (mode, authority) {
            (ClientAuth::No, None) => WebPkiClientVerifier::no_client_auth(),
            (ClientAuth::No, Some(authority)) => {
                return Err(authority.wrong(
                    self,
                    "is given, but clients are not asked for certificates: set client_auth_type: RequireAndVerifyClientCert, or remove it",
                ));
            }
            (ClientAuth::Request | ClientAuth::RequireAny, _) => {
                Arc::new(AnyCertificate::new(provider, mode == ClientAuth::RequireAny))
            }
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, None) => {
                let place = tls.client_auth_type.as_ref();
                let message = "`tls_server_config.client_auth_type` verifies certificates, but nothing says whose: name the CA with client_ca_file";
                return Err(
                    place.map_or_else(|| self.wrong(section, message), |place| self.wrong(place, message))
                );
            }
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, Some(authority)) => {
                let mut roots = RootCertStore::empty();
                for certificate in self.certificates(authority)? {
                    roots.add(certificate).map_err(|error| {
                        authority.wrong(self, format!("holds a certificate that cannot be a CA: {error}: give the CA's own certificate"))
                    })?;
                }
                let builder =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
                let builder = match mode {
                    ClientAuth::VerifyIfGiven => builder.allow_unauthenticated(),
                    _ => builder,
                };
                builder.build().map_err(|error| {
                    authority.wrong(self, format!("cannot be used: {error}: give the CA's own certificate"))
                })?
            }
        };
        match &tls.client_allowed_sans {
            None => Ok((verifier, mode)),
            Some(names) => {
                let allowed = self.allowed_names(section, names, mode)?;
                Ok((Arc::new(NamedClients::new(verifier, allowed)), mode))
            }
        }
    }

    fn client_auth(&self, tls: &Tls) -> Result<ClientAuth, ConfigError> {
        let Some(word) = &tls.client_auth_type else { return Ok(ClientAuth::No) };
        match word.value.as_str() {
            "" | "NoClientCert" => Ok(ClientAuth::No),
            "RequestClientCert" => Ok(ClientAuth::Request),
            // The second is the toolkit's old word for it.
            "RequireAnyClientCert" | "RequireClientCert" => Ok(ClientAuth::RequireAny),
            "VerifyClientCertIfGiven" => Ok(ClientAuth::VerifyIfGiven),
            "RequireAndVerifyClientCert" => Ok(ClientAuth::RequireAndVerify),
            other => Err(self.wrong(
                word,
                format!(
                    "`tls_server_config.client_auth_type`: {} is not known: write RequireAndVerifyClientCert, VerifyClientCertIfGiven, RequireAnyClientCert, RequestClientCert or NoClientCert",
                    shown(other)
                ),
            )),
        }
    }

    fn allowed_names(
        &self,
        section: &Located<Tls>,
        names: &[Located<String>],
        mode: ClientAuth,
    ) -> Result<AllowedNames, ConfigError> {
        if !matches!(mode, ClientAuth::RequireAny | ClientAuth::RequireAndVerify) {
            let message = "`tls_server_config.client_allowed_sans` needs clients that show a certificate: set client_auth_type: RequireAndVerifyClientCert";
            return Err(names
                .first()
                .map_or_else(|| self.wrong(section, message), |first| self.wrong(first, message)));
        }
        let mut allowed = AllowedNames::default();
        for name in names {
            if !allowed.add(&name.value) {
                let message = format!(
                    "`tls_server_config.client_allowed_sans`: {} is no name that can be checked: write a DNS name, an IP address or a URI",
                    shown(&name.value)
                );
                return Err(self.wrong(name, message));
            }
        }
        Ok(allowed)
    }

    fn wrong<T>(&self, place: &Located<T>, message: impl Into<String>) -> ConfigError {
        ConfigError::at(self.origin, place, message)
    }
}

/// PEM text, and where it came from.
struct Material<'f> {
    key: &'static str,
    at: &'f Located<String>,
    path: Option<PathBuf>,
    pem: Vec<u8>,
}

impl Material<'_> {
    /// How errors call it.
    fn place(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => format!("`tls_server_config.{}`", self.key),
        }
    }

    fn wrong(&self, reader: &Reader<'_>, message: impl AsRef<str>) -> ConfigError {
        let message = match &self.path {
            Some(path) => {
                format!("`tls_server_config.{}_file`: {} {}", self.key, path.display(), message.as_ref())
            }
            None => format!("`tls_server_config.{}` {}", self.key, message.as_ref()),
        };
        reader.wrong(self.at, message)
    }
}

/// Whether the section says more than its defaults.
fn said_anything(tls: &Tls) -> bool {
    let Tls {
        cert,
        key,
        client_ca,
        cert_file,
        key_file,
        client_ca_file,
        client_auth_type,
        client_allowed_sans,
        min_version,
        max_version,
        cipher_suites,
        curve_preferences,
        prefer_server_cipher_suites,
    } = tls;
    [cert, key, client_ca, cert_file, key_file, client_ca_file, client_auth_type, min_version, max_version]
        .iter()
        .any(|text| text.as_ref().is_some_and(|text| !text.value.is_empty()))
        || [client_allowed_sans, cipher_suites, curve_preferences].iter().any(|list| list.is_some())
        || prefer_server_cipher_suites.is_some()
}

fn is_tls13_suite(name: &str) -> bool {
    matches!(name, "TLS_AES_128_GCM_SHA256" | "TLS_AES_256_GCM_SHA384" | "TLS_CHACHA20_POLY1305_SHA256")
}

/// A value as it may stand in an error: in one short line.
fn shown(text: &str) -> String {
    let short: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    format!("`{short}`")
}
