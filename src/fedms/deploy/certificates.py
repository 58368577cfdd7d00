"""Certificates of a deployment: an authority of its own, the server's, and a key for every site.

Elliptic curves (P-384) throughout, as Flower asks for in keys of nodes.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY, _SERVER = timedelta(days=3650), timedelta(days=730)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def make_authority(name: str) -> tuple[bytes, bytes]:
    """Certificate and private key (PEM) of an authority; sites trust what it signs, for 10 years.

    Args:
        name: of the deployment, at most 64 characters.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    whole = _begin(name, name, key.public_key(), _AUTHORITY)
    whole = whole.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    whole = whole.add_extension(_usage(signs=True), critical=True)
    return _pem(whole.sign(key, hashes.SHA384())), _private(key)


def make_server(authority: tuple[bytes, bytes], host: str) -> tuple[bytes, bytes]:
    """Certificate and private key (PEM) of the server, for two years.

    Args:
        authority: certificate and key that sign it.
        host: name or address by which sites reach it; on its own machine it has others too.
    """
    signer = x509.load_pem_x509_certificate(authority[0])
    signing = serialization.load_pem_private_key(authority[1], None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    names = [_name(one) for one in dict.fromkeys((host, *_LOOPBACK))]
    whole = _begin(host, _common(signer), key.public_key(), _SERVER)
    whole = whole.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    whole = whole.add_extension(_usage(signs=False), critical=True)
    whole = whole.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
    )
    whole = whole.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _pem(whole.sign(signing, hashes.SHA384())), _private(key)


def make_node_key() -> tuple[bytes, bytes]:
    """Public and private key of a site's node, in OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return public + b"\n", private


def _begin(
    name: str, issuer: str, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer[:64])]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _common(certificate: x509.Certificate) -> str:
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
