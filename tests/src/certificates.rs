//! Certificates for servers of a test.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// What one certificate authority issued, as PEM.
pub struct Issued {
    pub ca: String,
    /// Certificate and key.
    pub server: (String, String),
    pub client: (String, String),
}

impl Issued {
    /// `names` are the server's.
    ///
    /// # Errors
    /// If a name cannot stand in a certificate.
    pub fn new(names: &[&str]) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue = |names: Vec<String>| -> anyhow::Result<(String, String)> {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        Ok(Self {
            server: issue(names.iter().map(ToString::to_string).collect())?,
            client: issue(vec!["lbd.example".to_owned()])?,
            ca: issuer.pem(),
        })
    }
}
