//! Certificates that a test makes for itself, valid for ever.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

/// A CA, and what it has signed.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// PEM texts.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(parameters, key).expect("a certificate"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server on loopback.
    pub(crate) fn server(&self) -> Pair {
        self.sign(vec![SanType::IpAddress("127.0.0.1".parse().expect("an address"))])
    }

    /// For a client of this name.
    pub(crate) fn client(&self, name: &str) -> Pair {
        self.sign(vec![SanType::DnsName(name.try_into().expect("a name"))])
    }

    fn sign(&self, names: Vec<SanType>) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = names;
        let certificate = parameters.signed_by(&key, &self.0).expect("a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Pair {
    /// As `server.crt` and `server.key`.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join("server.crt"), &self.certificate).expect("written");
        std::fs::write(folder.join("server.key"), &self.key).expect("written");
    }
}
