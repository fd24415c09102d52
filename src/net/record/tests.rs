use super::*;

const NOW: Ticks = Ticks(1_000_000);

/// One of each AEAD and version.
const SUITES: [u16; 6] = [0x1301, 0x1302, 0x1303, 0xC02F, 0xC030, 0xCCA8];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn state(suite: u16, [reading, writing]: [&[u8]; 2]) -> RecordState {
    let suite = Suite::of(suite).unwrap();
    let direction = |secret: &[u8], number| {
        let iv = match suite.version {
            Version::Tls12 => std::array::from_fn(|at| secret[at] ^ 0x55),
            Version::Tls13 => [0; suite::NONCE_BYTES],
        };
        DirectionState { secret: secret.to_vec(), iv, number }
    };
    RecordState::new(suite.number, direction(reading, 0), direction(writing, 0))
}

/// The other side's view.
fn mirrored(mut state: RecordState) -> RecordState {
    std::mem::swap(&mut state.reading, &mut state.writing);
    state
}

fn fresh(suite: u16) -> RecordState {
    let bytes = Suite::of(suite).unwrap().secret_bytes();
    state(suite, [&vec![0x11; bytes], &vec![0x22; bytes]])
}

/// Our layer and its client's.
fn pair(suite: u16) -> (RecordLayer, RecordLayer) {
    let state = fresh(suite);
    (RecordLayer::from_state(&state).unwrap(), RecordLayer::from_state(&mirrored(state)).unwrap())
}

fn sealed(layer: &mut RecordLayer, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; layer.sealed_bytes(data.len())];
    let len = layer.seal(&[data], &mut out).unwrap();
    assert_eq!(len, out.len(), "what was foretold");
    out
}

/// A record of any type, with any content.
fn raw(layer: &mut RecordLayer, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0; content.len() + OVERHEAD_BYTES_MAX];
    let len = layer.seal_record(kind, content.len(), &mut out, |place| place.copy_from_slice(content));
    out.truncate(len);
    out
}

fn key_update(layer: &mut RecordLayer, request: u8) -> Vec<u8> {
    let record = raw(layer, HANDSHAKE, &[24, 0, 0, 1, request]);
    layer.writing.update_key(layer.suite);
    record
}

fn alert(layer: &mut RecordLayer, alert: Alert) -> Vec<u8> {
    let mut out = [0; ALERT_BYTES_MAX];
    let len = layer.seal_alert(alert, &mut out).unwrap();
    out[..len].to_vec()
}

/// RFC 8448 section 3: what client and server send after the handshake. The server's first record was a ticket.
#[test]
fn records_are_those_of_rfc_8448() {
    let client_secret = hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
    let server_secret = hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
    let data: Vec<u8> = (0..=0x31).collect();
    let of_client = [
        hex("17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19
             a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49
             15 e4"),
        hex("17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3"),
    ];
    let of_server = [
        hex("17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3 0e fa
             f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2
             95 5d"),
        hex("17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9"),
    ];
    let mut state = state(0x1301, [&client_secret, &server_secret]);
    let suite = Suite::of(0x1301).unwrap();
    let mut secret = zeroize::Zeroizing::new([0; suite::SECRET_BYTES]);
    secret[..32].copy_from_slice(&server_secret);
    let (key, iv) = suite.traffic_key(&secret);
    assert_eq!(key[..16], hex("9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56"));
    assert_eq!(iv[..], hex("cf 78 2b 88 dd 83 54 9a ad f1 e9 84"));
    state.writing.number = 1;
    let mut client = RecordLayer::from_state(&mirrored(state.clone())).unwrap();
    let mut server = RecordLayer::from_state(&state).unwrap();
    let mut of_ours = of_server.clone();
    assert_eq!(sealed(&mut server, &data), of_server[0]);
    assert_eq!(alert(&mut server, Alert::CloseNotify), of_server[1]);
    assert_eq!(server.open(&mut of_client[0].clone(), NOW), Ok(Opened::Data(&mut data.clone())));
    assert_eq!(server.open(&mut of_client[1].clone(), NOW), Ok(Opened::CloseNotify));
    assert_eq!(sealed(&mut client, &data), of_client[0]);
    assert_eq!(alert(&mut client, Alert::CloseNotify), of_client[1]);
    assert_eq!(client.open(&mut of_ours[0], NOW), Ok(Opened::Data(&mut data.clone())));
    assert_eq!(client.open(&mut of_ours[1], NOW), Ok(Opened::CloseNotify));
}

#[test]
fn a_layer_is_as_small_as_two_keys_of_ring_allow() {
    let keys = 2 * size_of::<ring::aead::LessSafeKey>();
    assert_eq!((keys, size_of::<RecordLayer>()), (1_088, 1_280));
}

#[test]
fn whatever_is_sealed_is_opened_with_every_suite_in_pieces_of_every_kind() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        let data: Vec<u8> = (0..50_000_u32).map(|at| (at * 7 % 251) as u8).collect();
        for len in [1, 4, 176, 1_204, CONTENT_BYTES_MAX, CONTENT_BYTES_MAX + 1, 50_000] {
            for cuts in [[0, 0], [1, 1], [4, len / 2], [len / 3, len]] {
                let [first, second] = cuts.map(|cut| cut.min(len));
                let pieces = [&data[..first], &data[first..second.max(first)], &data[second.max(first)..len]];
                let mut out = vec![0; server.sealed_bytes(len)];
                assert_eq!(server.seal(&pieces, &mut out), Ok(out.len()));
                let (mut rest, mut opened) = (&mut out[..], Vec::new());
                while let Cut::Record(count) = client.cut(rest).unwrap() {
                    let (record, behind) = rest.split_at_mut(count);
                    let Ok(Opened::Data(data)) = client.open(record, NOW) else { panic!("{suite:#x} {len}") };
                    opened.extend_from_slice(data);
                    rest = behind;
                }
                assert_eq!((rest.len(), &opened[..]), (0, &data[..len]), "{suite:#x} {cuts:?}");
            }
        }
    }
}

#[test]
fn a_frame_is_one_record_as_long_as_it_fits() {
    for suite in SUITES {
        let (mut server, client) = pair(suite);
        let record = sealed(&mut server, &[7; CONTENT_BYTES_MAX]);
        assert_eq!(client.cut(&record), Ok(Cut::Record(record.len())));
        assert!(record.len() <= RECORD_BYTES_MAX && record.len() <= CONTENT_BYTES_MAX + OVERHEAD_BYTES_MAX);
    }
}

#[test]
fn plaintexts_come_to_lie_side_by_side() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        let mut bytes = b"kept".to_vec();
        let frames: [&[u8]; 4] = [b"one", b"twotwo", &[9; 1_000], b"four"];
        frames.iter().for_each(|frame| bytes.extend(sealed(&mut client, frame)));
        let (mut filled, mut at) = (4, 4);
        while let Cut::Record(len) = server.cut(&bytes[at..]).unwrap() {
            let record = &mut bytes[filled..at + len];
            let Ok(Opened::Data(data)) = server.open_to_front(record, at - filled, NOW) else { panic!("{suite:#x}") };
            filled += data.len();
            at += len;
        }
        assert_eq!(bytes[..filled], [&b"kept"[..], &frames.concat()].concat(), "{suite:#x}");
    }
}

#[test]
fn a_record_is_cut_only_when_it_is_whole() {
    for suite in SUITES {
        let (server, mut client) = pair(suite);
        let mut bytes = sealed(&mut client, b"some data");
        let len = bytes.len();
        for end in 0..len {
            assert_eq!(server.cut(&bytes[..end]), Ok(Cut::NeedMore));
        }
        bytes.extend([1, 2, 3]);
        assert_eq!(server.cut(&bytes), Ok(Cut::Record(len)));
    }
}

/// Whatever is flipped: what a client gets to hear tells it nothing but that the record is not the one that was sealed.
/// The type and the length outside are judged before: RFC 8446 sections 5, 5.1.
#[test]
fn flipping_any_bit_of_a_record_is_bad_record_mac_and_ends_the_connection() {
    for suite in SUITES {
        let mut state = fresh(suite);
        let record = sealed(&mut pair(suite).1, &[0x5A; 100]);
        state.key_updates_since = NOW;
        for bit in 0..record.len() * 8 {
            let mut server = RecordLayer::from_state(&state).unwrap();
            let mut bytes = record.clone();
            bytes[bit / 8] ^= 0x80 >> (bit % 8);
            let alert = match (bit / 8, server.cut(&bytes)) {
                (0, Err(alert)) => {
                    assert_eq!(alert, Alert::UnexpectedMessage);
                    continue;
                }
                (1 | 2, cut) => {
                    assert_eq!(cut, Err(Alert::BadRecordMac));
                    Alert::BadRecordMac
                }
                (3 | 4, Ok(Cut::NeedMore) | Err(Alert::RecordOverflow | Alert::BadRecordMac)) => continue,
                (_, cut) => {
                    let Ok(Cut::Record(len)) = cut else { panic!("{suite:#x}, bit {bit}: {cut:?}") };
                    bytes.truncate(len);
                    server.open(&mut bytes, NOW).expect_err("a changed record")
                }
            };
            assert_eq!(alert, Alert::BadRecordMac, "{suite:#x}, bit {bit}");
            if server.has_ended_reading() {
                assert_eq!(server.open(&mut record.clone(), NOW), Ok(Opened::Ignored), "nothing is opened any more");
            }
        }
    }
}

#[test]
fn a_record_is_opened_once_and_in_its_turn() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        let first = sealed(&mut client, b"first");
        let second = sealed(&mut client, b"second");
        let mut early = RecordLayer::from_state(&fresh(suite)).unwrap();
        assert_eq!(early.open(&mut second.clone(), NOW), Err(Alert::BadRecordMac));
        assert!(matches!(server.open(&mut first.clone(), NOW), Ok(Opened::Data(_))));
        assert_eq!(server.open(&mut first.clone(), NOW), Err(Alert::BadRecordMac));
    }
}

fn header(kind: u8, version: [u8; 2], len: usize) -> Vec<u8> {
    let [high, low] = (len as u16).to_be_bytes();
    vec![kind, version[0], version[1], high, low]
}

#[test]
fn headers_are_refused_before_their_record_has_come() {
    for suite in SUITES {
        let (server, _) = pair(suite);
        let (max, min) = match server.version() {
            Version::Tls13 => (CONTENT_BYTES_MAX + 256, TAG_BYTES),
            Version::Tls12 => {
                let overhead = server.suite.explicit_nonce_bytes() + TAG_BYTES;
                (CONTENT_BYTES_MAX + overhead, overhead)
            }
        };
        let cut = |kind, version, len| server.cut(&header(kind, version, len));
        assert_eq!(cut(APPLICATION_DATA, VERSION, max), Ok(Cut::NeedMore));
        assert_eq!(cut(APPLICATION_DATA, VERSION, max + 1), Err(Alert::RecordOverflow));
        assert_eq!(cut(APPLICATION_DATA, VERSION, 0xFFFF), Err(Alert::RecordOverflow));
        assert_eq!(cut(APPLICATION_DATA, VERSION, min), Ok(Cut::NeedMore));
        assert_eq!(cut(APPLICATION_DATA, VERSION, min - 1), Err(Alert::BadRecordMac));
        assert_eq!(cut(APPLICATION_DATA, VERSION, 0), Err(Alert::BadRecordMac));
        for version in [[3, 1], [3, 4], [2, 3], [0, 0], [0xFE, 0xFD]] {
            assert_eq!(cut(APPLICATION_DATA, version, 100), Err(Alert::BadRecordMac), "{version:?}");
        }
        for kind in [0, 19, 24, 0x40, 0x80, 255] {
            assert_eq!(cut(kind, VERSION, 100), Err(Alert::UnexpectedMessage), "{kind}");
        }
        for kind in [CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE] {
            let expected = match server.version() {
                Version::Tls13 => Err(Alert::UnexpectedMessage),
                Version::Tls12 => Ok(Cut::NeedMore),
            };
            assert_eq!(cut(kind, VERSION, 100), expected, "{kind}");
        }
    }
}

#[test]
fn a_record_that_was_not_cut_is_refused() {
    for suite in SUITES {
        let record = sealed(&mut pair(suite).1, b"data");
        for len in 0..record.len() {
            let mut server = pair(suite).0;
            assert_eq!(server.open(&mut record[..len].to_vec(), NOW), Err(Alert::DecodeError));
        }
        let mut longer = record.clone();
        longer.push(0);
        assert_eq!(pair(suite).0.open(&mut longer, NOW), Err(Alert::DecodeError));
        assert_eq!(pair(suite).0.open_to_front(&mut record.clone(), record.len() + 9, NOW), Err(Alert::DecodeError));
    }
}

/// What a client says inside, with the right key, and what becomes of it.
#[test]
fn what_has_no_place_inside_ends_the_connection() {
    let cases: [(u8, &[u8], Alert); 17] = [
        (CHANGE_CIPHER_SPEC, &[1], Alert::UnexpectedMessage),
        (CHANGE_CIPHER_SPEC, &[], Alert::UnexpectedMessage),
        (ALERT, &[], Alert::UnexpectedMessage),
        (ALERT, &[1], Alert::DecodeError),
        (ALERT, &[1, 0, 0], Alert::DecodeError),
        (HANDSHAKE, &[], Alert::UnexpectedMessage),
        // HelloRequest, ClientHello, Certificate; KeyUpdate with another beside it, cut, and of another length.
        (HANDSHAKE, &[0, 0, 0, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[1, 0, 0, 1, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[11, 0, 0, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 0, 0, 1], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 0, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 0, 0, 2, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 0, 0, 2, 0, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 1, 0, 1, 0], Alert::UnexpectedMessage),
        (HANDSHAKE, &[24, 0, 0, 1, 2], Alert::IllegalParameter),
        (HANDSHAKE, &[24, 0, 0, 1, 255], Alert::IllegalParameter),
    ];
    for suite in SUITES {
        for (kind, content, expected) in cases {
            let (mut server, mut client) = pair(suite);
            let is_key_update = server.version() == Version::Tls13;
            let expected = if is_key_update || kind != HANDSHAKE { expected } else { Alert::UnexpectedMessage };
            let mut record = raw(&mut client, kind, content);
            assert_eq!(server.open(&mut record, NOW), Err(expected), "{suite:#x} {kind} {content:?}");
            assert!(server.has_ended_reading());
            // The client hears it, encrypted, and nothing else.
            let mut told = alert(&mut server, expected);
            assert_eq!(client.open(&mut told, NOW), Ok(Opened::Failed(expected as u8)));
            assert_eq!(server.seal(&[b"data"], &mut [0; 100]), Err(SealError::Closed));
            assert_eq!(server.seal_alert(Alert::InternalError, &mut [0; 100]), Err(SealError::Closed));
        }
        let (mut server, mut client) = pair(suite);
        let mut update = raw(&mut client, HANDSHAKE, &[24, 0, 0, 1, 0]);
        let expected = match server.version() {
            Version::Tls12 => Err(Alert::UnexpectedMessage),
            Version::Tls13 => Ok(Opened::KeyUpdate { answer_requested: false }),
        };
        assert_eq!(server.open(&mut update, NOW), expected);
    }
}

#[test]
fn inner_types_that_are_none_and_plaintexts_without_a_type_are_refused() {
    for suite in &SUITES[..3] {
        for kind in (0..=255).filter(|kind| ![ALERT, HANDSHAKE, APPLICATION_DATA].contains(kind)) {
            let (mut server, mut client) = pair(*suite);
            let mut record = raw(&mut client, kind, b"");
            assert_eq!(server.open(&mut record, NOW), Err(Alert::UnexpectedMessage), "{kind}");
        }
        // Nothing but zeros (RFC 8446 section 5.4).
        let (mut server, mut client) = pair(*suite);
        let mut record = raw(&mut client, 0, &[0; 1_000]);
        assert_eq!(server.open(&mut record, NOW), Err(Alert::UnexpectedMessage));
        // No byte at all: a tag, right as it is.
        let (mut server, mut client) = pair(*suite);
        let mut record = header(APPLICATION_DATA, VERSION, TAG_BYTES);
        let tag = client.writing.seal(client.suite, *record.first_chunk().unwrap(), &mut []);
        record.extend(tag.as_ref());
        assert_eq!(server.open(&mut record, NOW), Err(Alert::UnexpectedMessage));
    }
}

#[test]
fn padding_is_taken_off_and_counts_as_length() {
    for suite in &SUITES[..3] {
        let (mut server, mut client) = pair(*suite);
        for padding in [0, 1, 100, CONTENT_BYTES_MAX - 4] {
            let inner = [&b"data"[..], &[APPLICATION_DATA], &vec![0; padding]].concat();
            // The last byte of padding stands where the type would.
            let (kind, content) = inner.split_last().unwrap();
            let mut record = raw(&mut client, *kind, content);
            assert_eq!(server.open(&mut record, NOW), Ok(Opened::Data(&mut b"data".to_vec())), "{padding}");
        }
        let mut record = raw(&mut client, 0, &[&b"data"[..], &[23], &[0; CONTENT_BYTES_MAX - 4]].concat());
        assert_eq!(server.open(&mut record, NOW), Err(Alert::RecordOverflow));
    }
}

#[test]
fn records_without_content_are_allowed_but_not_without_end() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        for _ in 0..3 {
            for _ in 0..EMPTY_RECORDS_MAX {
                assert_eq!(server.open(&mut sealed(&mut client, b""), NOW), Ok(Opened::Ignored));
            }
            assert!(matches!(server.open(&mut sealed(&mut client, b"."), NOW), Ok(Opened::Data(_))));
        }
        for _ in 0..EMPTY_RECORDS_MAX {
            assert_eq!(server.open(&mut raw(&mut client, ALERT, &[1, USER_CANCELED]), NOW), Ok(Opened::Ignored));
        }
        assert_eq!(server.open(&mut sealed(&mut client, b""), NOW), Err(Alert::UnexpectedMessage));
    }
}

#[test]
fn both_directions_close_by_themselves() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        assert_eq!(server.open(&mut alert(&mut client, Alert::CloseNotify), NOW), Ok(Opened::CloseNotify));
        assert!(server.has_ended_reading() && !server.has_ended_writing());
        // What was under way still goes out, and what comes is ignored, whatever it is.
        assert!(matches!(client.open(&mut sealed(&mut server, b"last"), NOW), Ok(Opened::Data(_))));
        assert_eq!(server.open(&mut [0; 3], NOW), Ok(Opened::Ignored));
        assert_eq!(client.open(&mut alert(&mut server, Alert::CloseNotify), NOW), Ok(Opened::CloseNotify));
        assert_eq!(server.seal_alert(Alert::CloseNotify, &mut [0; 64]), Err(SealError::Closed));
        assert!(server.has_ended_writing());
    }
}

#[test]
fn an_alert_of_the_client_needs_no_answer() {
    for suite in SUITES {
        for (level, description) in [(2, 80), (1, 80), (2, 20), (1, 100), (2, 255)] {
            let (mut server, mut client) = pair(suite);
            let mut record = raw(&mut client, ALERT, &[level, description]);
            assert_eq!(server.open(&mut record, NOW), Ok(Opened::Failed(description)));
            assert!(server.has_ended_reading());
        }
    }
}

#[test]
fn key_updates_that_ask_are_answered_once_before_the_next_data() {
    for suite in &SUITES[..3] {
        let (mut server, mut client) = pair(*suite);
        for _ in 0..3 {
            let answer_requested = true;
            let mut record = key_update(&mut client, UPDATE_REQUESTED);
            assert_eq!(server.open(&mut record, NOW), Ok(Opened::KeyUpdate { answer_requested }));
        }
        assert!(matches!(server.open(&mut sealed(&mut client, b"new key"), NOW), Ok(Opened::Data(_))));
        let mut answer = sealed(&mut server, b"answer");
        let Ok(Cut::Record(first)) = client.cut(&answer) else { panic!("a record") };
        assert_eq!(answer.len(), 27 + 6 + 22, "a key update and a record");
        let (update, data) = answer.split_at_mut(first);
        assert_eq!(client.open(update, NOW), Ok(Opened::KeyUpdate { answer_requested: false }));
        assert_eq!(client.open(data, NOW), Ok(Opened::Data(&mut b"answer".to_vec())));
        assert_eq!(sealed(&mut server, b"more").len(), 4 + 22, "one answer");
    }
}

#[test]
fn more_key_updates_than_anybody_needs_end_the_connection() {
    for suite in &SUITES[..3] {
        let (mut server, mut client) = pair(*suite);
        let later = |ms| Ticks(NOW.0 + ms);
        for round in 0..2 {
            for number in 0..KEY_UPDATES_PER_MINUTE {
                let now = later(round * MINUTE + u64::from(number));
                let mut record = key_update(&mut client, UPDATE_NOT_REQUESTED);
                assert!(matches!(server.open(&mut record, now), Ok(Opened::KeyUpdate { .. })));
            }
        }
        let mut record = key_update(&mut client, UPDATE_NOT_REQUESTED);
        assert_eq!(server.open(&mut record, later(2 * MINUTE - 1)), Err(Alert::UnexpectedMessage));
    }
}

/// RFC 8446 section 5.5.
#[test]
fn a_key_of_aes_gcm_seals_2_to_the_24_records_and_no_more() {
    for suite in SUITES {
        let mut state = fresh(suite);
        let is_gcm = ![0x1303, 0xCCA8].contains(&suite);
        state.writing.number = if is_gcm { 1 << 24 } else { u64::MAX - 2 } - 2;
        let mut server = RecordLayer::from_state(&state).unwrap();
        let mut client = RecordLayer::from_state(&mirrored(state)).unwrap();
        assert!(matches!(client.open(&mut sealed(&mut server, b"a"), NOW), Ok(Opened::Data(_))));
        // Two records, for one of which the key is good.
        let long = vec![7; CONTENT_BYTES_MAX + 1];
        if server.version() == Version::Tls12 {
            let mut out = vec![0; 40_000];
            assert_eq!(server.seal(&[&long], &mut out), Err(SealError::Exhausted));
            assert!(matches!(client.open(&mut sealed(&mut server, b"b"), NOW), Ok(Opened::Data(_))));
            assert_eq!(server.seal(&[b"c"], &mut out), Err(SealError::Exhausted));
            assert_eq!(client.open(&mut alert(&mut server, Alert::CloseNotify), NOW), Ok(Opened::CloseNotify));
            continue;
        }
        let (mut bytes, mut said) = (sealed(&mut server, &long), Vec::new());
        let mut rest = &mut bytes[..];
        while let Cut::Record(len) = client.cut(rest).unwrap() {
            let (record, behind) = rest.split_at_mut(len);
            said.push(match client.open(record, NOW).unwrap() {
                Opened::Data(data) => data.len(),
                Opened::KeyUpdate { answer_requested: false } => 0,
                other => panic!("{other:?}"),
            });
            rest = behind;
        }
        assert_eq!(said, [CONTENT_BYTES_MAX, 0, 1], "{suite:#x}");
        assert_eq!(server.writing.number, 1);
    }
}

/// RFC 8446 section 5.3.
#[test]
fn record_numbers_never_wrap() {
    for suite in SUITES {
        let mut state = fresh(suite);
        state.reading.number = u64::MAX - 1;
        state.writing.number = u64::MAX;
        let mut server = RecordLayer::from_state(&state).unwrap();
        let mut client = RecordLayer::from_state(&mirrored(state)).unwrap();
        let mut record = raw(&mut client, APPLICATION_DATA, b"last");
        assert!(matches!(server.open(&mut record, NOW), Ok(Opened::Data(_))));
        assert_eq!(server.open(&mut record.clone(), NOW), Err(Alert::UnexpectedMessage));
        assert_eq!(server.seal(&[b"data"], &mut [0; 100]), Err(SealError::Exhausted));
        assert_eq!(server.seal_alert(Alert::CloseNotify, &mut [0; 100]), Err(SealError::Exhausted));
    }
}

#[test]
fn a_buffer_that_is_too_small_changes_nothing() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        server.owes_key_update = server.version() == Version::Tls13;
        let needed = server.sealed_bytes(4);
        assert_eq!(server.seal(&[b"da", b"ta"], &mut vec![0; needed - 1]), Err(SealError::NoRoom { needed }));
        assert_eq!(
            server
                .seal_alert(Alert::CloseNotify, &mut [0; 9])
                .map_err(|error| matches!(error, SealError::NoRoom { .. })),
            Err(true)
        );
        let mut bytes = sealed(&mut server, b"data");
        let Ok(Cut::Record(first)) = client.cut(&bytes) else { panic!("a record") };
        assert!(client.open(&mut bytes[..first], NOW).is_ok());
    }
}

#[test]
fn a_state_is_taken_over_only_if_it_is_a_suites() {
    for suite in SUITES {
        let state = fresh(suite);
        assert_eq!(RecordLayer::from_state(&state).unwrap().to_state(), state);
        let bytes = minicbor::to_vec(&state).unwrap();
        assert_eq!(minicbor::decode::<RecordState>(&bytes).unwrap(), state);
        let mut wrong = state.clone();
        wrong.suite = 0x1304;
        assert_eq!(RecordLayer::from_state(&wrong).err(), Some(RecordLayerError::Suite { suite: 0x1304 }));
        for bytes in [0, 16, 32, 48, 49].into_iter().filter(|bytes| *bytes != state.reading.secret.len()) {
            let mut wrong = state.clone();
            wrong.writing.secret.resize(bytes, 0);
            assert_eq!(RecordLayer::from_state(&wrong).err(), Some(RecordLayerError::SecretLength { suite, bytes }));
        }
    }
}

// [8489-6.2.3-4, -5, -6]
#[test]
fn every_suite_that_we_offer_is_known() {
    for offered in &crate::tls::provider().cipher_suites {
        let suite = Suite::of(offered.suite().into()).expect("offered by rustls");
        assert_eq!(suite.version == Version::Tls13, offered.tls13().is_some(), "{offered:?}");
    }
}

/// Every part of a state that is not a key changes what the layer does, so each is taken over.
#[test]
fn flags_and_counts_of_a_state_are_taken_over() {
    let change: [fn(&mut RecordState); 6] = [
        |state| state.has_ended_reading = true,
        |state| state.has_ended_writing = true,
        |state| state.owes_key_update = true,
        |state| state.empty_records = 7,
        |state| state.key_updates = 9,
        |state| state.key_updates_since = Ticks(11),
    ];
    for change in change {
        let mut state = fresh(0x1301);
        change(&mut state);
        assert_ne!(state, fresh(0x1301));
        assert_eq!(RecordLayer::from_state(&state).unwrap().to_state(), state);
    }
}

#[test]
fn secrets_are_not_printed() {
    let state = fresh(0x1301);
    let layer = RecordLayer::from_state(&state).unwrap();
    let printed = format!("{state:?} {:?} {layer:?} {:?}", state.reading, TrafficSecrets::default());
    assert!(!printed.contains("17, 17") && !printed.contains("1111"), "{printed}");
}
