"""A certificate authority of the test's own, and certificates that it signs."""

import datetime
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


def _name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _usage(**wanted):
    every = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in every})


class Authority:
    def __init__(self, directory):
        self.path = os.path.join(directory, "authority.pem")
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(
            "throughway test authority", self.key.public_key(),
            [(x509.BasicConstraints(ca=True, path_length=0), True),
             (_usage(key_cert_sign=True, crl_sign=True), True)])
        with open(self.path, "wb") as file:
            file.write(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, public_key, extensions):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (x509.CertificateBuilder().subject_name(_name(subject))
                   .issuer_name(_name("throughway test authority")).public_key(public_key)
                   .serial_number(x509.random_serial_number())
                   .not_valid_before(now - DAY).not_valid_after(now + 30 * DAY)
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(
                       self.key.public_key()), False))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def write(self, name, certificate_path, key_path):
        """A new key pair and its certificate for `name`, each file put in place by a rename as
        certificate tools do; returns the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), [
            (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False)])
        contents = {
            key_path: key.private_bytes(serialization.Encoding.PEM,
                                        serialization.PrivateFormat.PKCS8,
                                        serialization.NoEncryption()),
            certificate_path: certificate.public_bytes(serialization.Encoding.PEM)}
        for path, content in contents.items():
            with open(path + ".new", "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                file.write(content)
            os.rename(path + ".new", path)
        return certificate.serial_number
