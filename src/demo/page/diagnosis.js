// Why nothing connected, as far as a page can know.

export function diagnosis({ seconds, connection, errors, relayed }) {
  const limit = `Not connected within ${seconds} s.`;
  const reports = errors.map(
    ({ url, errorCode, errorText }) => `${url || 'the server'} said ${errorCode}${errorText ? ` ${errorText}` : ''}`,
  );
  const listed = reports.length ? ` The browser reports: ${[...new Set(reports)].slice(0, 4).join('; ')}.` : '';
  if (!navigator.onLine) {
    return `${limit} The browser thinks that this machine is offline, and then Firefox uses no network. Connect to any network; internet is not needed.${listed}`;
  }
  if (!connection) return `${limit} The other tab sent no offer. Is it still open, and does its log say why?`;
  if (!relayed) {
    return `${limit} The relay gave this tab no address: it could not be reached, or it refused the password.${listed || ' The browser reports no error; a machine with nothing but a loopback interface behaves like this.'}`;
  }
  if (!connection.remoteDescription) return `${limit} This tab has an address, but the other tab did not answer.${listed}`;
  return `${limit} Both tabs have addresses, but no packet came through between them (ICE ${connection.iceConnectionState}).${listed}`;
}
