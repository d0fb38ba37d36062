//! What a client's certificate must be beside what webpki verifies: any at all, or one with a certain name.

use std::{net::IpAddr, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::EndEntityCert;

/// Takes every certificate whose key the client has; whose it is, nobody says.
#[derive(Debug)]
pub(super) struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
    mandatory: bool,
}

impl AnyCertificate {
    pub(super) fn new(provider: &CryptoProvider, mandatory: bool) -> Self {
        Self { algorithms: provider.signature_verification_algorithms, mandatory }
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        parsed(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// `client_allowed_sans`: exactly these, no wildcards.
#[derive(Debug, Default)]
pub(super) struct AllowedNames {
    addresses: Vec<IpAddr>,
    /// DNS names and URIs.
    texts: Vec<String>,
}

impl AllowedNames {
    /// Whether it is a name that can be found in a certificate. E-mail addresses cannot: webpki does not read them.
    pub(super) fn add(&mut self, name: &str) -> bool {
        if let Ok(address) = name.parse() {
            self.addresses.push(address);
            return true;
        }
        let is_checkable = !name.is_empty() && (name.contains("://") || !name.contains('@'));
        if is_checkable {
            self.texts.push(name.to_owned());
        }
        is_checkable
    }

    fn cover(&self, certificate: &EndEntityCert<'_>) -> bool {
        let listed = |name: &str| self.texts.iter().any(|text| text == name);
        let is_for = |address: &IpAddr| {
            certificate.verify_is_valid_for_subject_name(&ServerName::IpAddress((*address).into())).is_ok()
        };
        certificate.valid_dns_names().any(listed)
            || certificate.valid_uri_names().any(listed)
            || self.addresses.iter().any(is_for)
    }
}

/// Lets in whom another verifier lets in, if the certificate also has an allowed name.
#[derive(Debug)]
pub(super) struct NamedClients {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: AllowedNames,
}

impl NamedClients {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>, allowed: AllowedNames) -> Self {
        Self { inner, allowed }
    }
}

impl ClientCertVerifier for NamedClients {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if self.allowed.cover(&parsed(end_entity)?) {
            Ok(verified)
        } else {
            Err(Error::General("no name in the client's certificate is in client_allowed_sans".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<EndEntityCert<'a>, Error> {
    EndEntityCert::try_from(certificate).map_err(|_| rustls::CertificateError::BadEncoding.into())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_are_compared_whole() {
        let mut parameters = CertificateParams::new(["scraper.example".to_owned()]).expect("parameters");
        parameters
            .subject_alt_names
            .push(SanType::URI("spiffe://example/prometheus".try_into().expect("ASCII")));
        parameters.subject_alt_names.push(SanType::IpAddress("192.0.2.7".parse().expect("an address")));
        parameters.subject_alt_names.push(SanType::DnsName("*.wild.example".try_into().expect("ASCII")));
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let certificate = parsed(certificate.der()).expect("parsed");
        for (allowed, covered) in [
            ("scraper.example", true),
            ("spiffe://example/prometheus", true),
            ("192.0.2.7", true),
            ("*.wild.example", true),
            ("a.wild.example", false),
            ("example", false),
            ("spiffe://example/", false),
            ("192.0.2.70", false),
        ] {
            let mut names = AllowedNames::default();
            assert!(names.add(allowed), "{allowed}");
            assert_eq!(names.cover(&certificate), covered, "{allowed}");
        }
        assert!(!AllowedNames::default().cover(&certificate), "an empty list admits nobody");
        for unreadable in ["", "prometheus@example.org"] {
            assert!(!AllowedNames::default().add(unreadable), "{unreadable}");
        }
    }
}
