// Reads getStats: which candidate pair carries the call, and how much went through it.

/** What `read` knows at a moment, or null without a selected pair. */
export class Meter {
  #pairs = new Map();
  #last = null;
  #generation = 0;

  /** Forget nothing of what was counted, but expect other names for the pairs. */
  newConnection() {
    this.#generation += 1;
    this.#last = null;
  }

  async read(connection) {
    const report = await connection.getStats();
    const at = performance.now();
    const video = {};
    for (const entry of report.values()) {
      if (entry.type === 'candidate-pair') {
        // ids are only unique within one connection; a pair that vanished keeps its last count
        this.#pairs.set(`${this.#generation}/${entry.id}`, {
          sent: entry.bytesSent ?? 0,
          received: entry.bytesReceived ?? 0,
        });
      }
      if (entry.type === 'inbound-rtp' && entry.kind === 'video') {
        video.received = entry.framesReceived ?? entry.framesDecoded ?? 0;
        video.decoded = entry.framesDecoded ?? 0;
        video.lost = entry.packetsLost ?? 0;
        video.width = entry.frameWidth ?? 0;
        video.height = entry.frameHeight ?? 0;
      }
      if (entry.type === 'outbound-rtp' && entry.kind === 'video') video.sent = entry.framesSent ?? entry.framesEncoded ?? 0;
    }
    const selected = selectedPair(report);
    if (!selected) return null;
    const { pair, local, remote } = selected;

    const totals = { sent: 0, received: 0 };
    for (const { sent, received } of this.#pairs.values()) {
      totals.sent += sent;
      totals.received += received;
    }
    const before = this.#last;
    const seconds = before ? (at - before.at) / 1000 : 0;
    const rate = (now, then) => (seconds > 0 ? Math.max(0, (8 * (now - then)) / seconds) : 0);
    const framesBefore = before?.frames ?? 0;
    this.#last = { at, ...totals, frames: video.received ?? 0 };
    return {
      pair: {
        local: end(local),
        remote: end(remote),
        // `protocol` stays "udp" when the client speaks TCP to its relay; only `relayProtocol` tells
        relayProtocol: local.relayProtocol ?? '',
        url: local.url ?? '',
        state: pair.state,
      },
      roundTrip: pair.currentRoundTripTime ?? null,
      sent: totals.sent,
      received: totals.received,
      sendingRate: before ? rate(totals.sent, before.sent) : 0,
      receivingRate: before ? rate(totals.received, before.received) : 0,
      video,
      framesPerSecond: seconds > 0 ? Math.max(0, ((video.received ?? 0) - framesBefore) / seconds) : 0,
    };
  }
}

/** Names the selected pair, or null: both relayed ports change with an ICE restart. */
export async function selectedPairName(connection) {
  const selected = selectedPair(await connection.getStats());
  return selected && `${endText(end(selected.local))} to ${endText(end(selected.remote))}`;
}

/** The pair that carries the call, with both its ends, or null. */
function selectedPair(report) {
  const entries = [...report.values()];
  const transport = entries.find(({ type, selectedCandidatePairId }) => type === 'transport' && selectedCandidatePairId);
  // Firefox (140 for one) reports no transport, and marks the pair itself
  const pair = transport ? report.get(transport.selectedCandidatePairId) : entries.find(({ type, selected }) => type === 'candidate-pair' && selected);
  const [local, remote] = [report.get(pair?.localCandidateId), report.get(pair?.remoteCandidateId)];
  return local && remote ? { pair, local, remote } : null;
}

export function endText(end) {
  // a page without camera permission is not told this machine's own address
  if (!end.address) return `port ${end.port}`;
  const address = end.address.includes(':') ? `[${end.address}]` : end.address;
  return `${address}:${end.port}`;
}

function end(candidate) {
  return { type: candidate.candidateType, address: candidate.address ?? candidate.ip ?? '?', port: candidate.port };
}
