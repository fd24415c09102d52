// A call that shows its losses: numbered messages over a data channel that repeats nothing and keeps no order. What
// happens here is the same in both browsers (`callIn` runs in a page) and in werift, whose classes have the same names.

/**
 * Makes one end of a call. `task` is `{ role, iceServers, count, everyMs, size, isReliable }`, `classes` has an RTCPeerConnection.
 * It must stand alone: puppeteer carries its text into a page.
 */
export function callIn(task, classes) {
  const { role, iceServers, count, everyMs, size, isReliable } = task;
  const connection = new classes.RTCPeerConnection({ iceServers, iceTransportPolicy: 'relay' });
  const seen = new Set();
  const end = { connection, errors: [], received: 0, repeated: 0, wrong: 0, sent: 0, candidates: [], states: [], ways: [] };
  const sentAt = new Map();
  let channel = null;
  let opened;
  end.opened = new Promise((resolve) => { opened = resolve; });

  // what number N carries is known to both ends
  const message = (number) => {
    const bytes = new Uint8Array(size);
    new DataView(bytes.buffer).setUint32(0, number);
    for (let at = 4; at < size; at += 1) bytes[at] = (number * 31 + at * 7) & 255;
    return bytes;
  };
  const take = (data) => {
    const bytes = new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength);
    const number = bytes.length < 4 ? -1 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
    const expected = message(number);
    end.received += 1;
    if (bytes.length !== size || expected.some((byte, at) => byte !== bytes[at])) end.wrong += 1;
    if (seen.has(number)) end.repeated += 1;
    seen.add(number);
    // there and back again: when it was sent, and how long it took, in milliseconds
    if (sentAt.has(number)) end.ways.push([sentAt.get(number), Date.now() - sentAt.get(number)]);
    if (role === 'answer') channel.send(expected);
  };
  const use = (one) => {
    channel = one;
    channel.binaryType = 'arraybuffer';
    channel.onmessage = ({ data }) => take(data);
    if (channel.readyState === 'open') opened();
    else channel.onopen = () => opened();
  };
  connection.onconnectionstatechange = () => end.states.push(connection.connectionState);
  connection.onnegotiationneeded = () => end.states.push('negotiation needed');
  connection.onicecandidateerror = ({ url, errorCode, errorText }) => end.errors.push({ url, code: errorCode, text: errorText });

  end.gathered = () => new Promise((resolve) => {
    const done = () => {
      if (connection.iceGatheringState !== 'complete') return;
      const { sdp } = connection.localDescription;
      end.candidates = sdp.split(/\r?\n/).filter((line) => line.startsWith('a=candidate')).map((line) => line.slice(2));
      resolve(sdp);
    };
    connection.onicegatheringstatechange = done;
    done();
  });
  end.offer = async () => {
    use(connection.createDataChannel('numbered', isReliable ? {} : { ordered: false, maxRetransmits: 0 }));
    await connection.setLocalDescription(await connection.createOffer());
    return end.gathered();
  };
  end.answer = async (sdp) => {
    connection.ondatachannel = (event) => use(event.channel);
    await connection.setRemoteDescription({ type: 'offer', sdp });
    await connection.setLocalDescription(await connection.createAnswer());
    return end.gathered();
  };
  end.accept = (sdp) => connection.setRemoteDescription({ type: 'answer', sdp });
  /** The offerer sends; by the clock, so that a slow timer catches up. */
  end.send = async () => {
    const began = Date.now();
    for (let number = 0; number < count; number += 1) {
      const wait = began + number * everyMs - Date.now();
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      sentAt.set(number, Date.now());
      channel.send(message(number));
      end.sent += 1;
    }
  };
  end.missing = () => Array.from({ length: count }, (_, number) => number).filter((number) => !seen.has(number));
  end.result = () => ({ sent: end.sent, received: end.received, repeated: end.repeated, wrong: end.wrong, missing: end.missing(), state: connection.connectionState, states: end.states, ways: end.ways });
  return end;
}
