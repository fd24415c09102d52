"""What an ACME server of a test stands on: the keys and certificates of its authority, and a name server."""

import datetime
import ipaddress
import os
import socket

import dns.flags
import dns.message
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def answer_names(stop, address, suffix, server):
    """A name server at an address, for which all names with this suffix are the server's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))
        sock.settimeout(0.2)
        while not stop.is_set():
            try:
                raw, source = sock.recvfrom(4096)
            except TimeoutError:
                continue
            query = dns.message.from_wire(raw)
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.AA
            question = query.question[0]
            if question.rdtype == dns.rdatatype.A and question.name.to_text().endswith(suffix):
                answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", server))
            sock.sendto(answer.to_wire(), source)


def certificate(subject, key, issuer, issuer_key, *, is_authority, names=()):
    now = datetime.datetime.now(datetime.timezone.utc)
    own = key.public_key()
    builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(own)
               .serial_number(x509.random_serial_number())
               .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=90))
               .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), True)
               .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), False)
               .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(issuer_key, hashes.SHA256())


def write_key(path, key):
    with open(path, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def write_certificate(path, made):
    with open(path, "wb") as file:
        file.write(made.public_bytes(serialization.Encoding.PEM))


def make_authority(directory, *, address=None, name=None):
    """The key that signs what is issued, and the certificate of the ACME server itself, which is at an address or has a name."""
    top = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "throughway test authority")])
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    write_key(os.path.join(directory, "issuing.key"), root)
    write_certificate(os.path.join(directory, "issuing.pem"), certificate(top, root, top, root, is_authority=True))
    now = datetime.datetime.now(datetime.timezone.utc)
    revoked = x509.CertificateRevocationListBuilder().issuer_name(top).last_update(now).next_update(now + datetime.timedelta(days=90))
    write_certificate(os.path.join(directory, "issuing.crl"), revoked.sign(root, hashes.SHA256()))
    write_key(os.path.join(directory, "authority.key"), own)
    names = [x509.DNSName(name) if name else x509.IPAddress(ipaddress.ip_address(address))]
    own_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "acme")])
    write_certificate(os.path.join(directory, "authority.crt"), certificate(own_name, own, top, root, is_authority=False, names=names))
