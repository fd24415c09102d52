defmodule TurnCredentials do
  @doc "Username and password that the relay accepts for ttl seconds."
  def mint(secret, user, ttl \\ 3600) do
    username = "#{System.os_time(:second) + ttl}:#{user}"
    {username, Base.encode64(:crypto.mac(:hmac, :sha, secret, username))}
  end

  @doc "The relay's answer: an RTCConfiguration with iceServers, to be passed on to the page."
  def ask(relay, key, user) do
    url = ~c"#{relay}/ice?#{URI.encode_query(username: user)}"
    headers = [{~c"authorization", ~c"Bearer #{key}"}]
    options = [timeout: 5000, connect_timeout: 5000] ++ tls(relay)

    case :httpc.request(:get, {url, headers}, options, body_format: :binary) do
      {:ok, {{_, 200, _}, _, body}} -> body
      {:ok, {{_, status, _}, _, body}} -> raise "the relay answers #{status}: #{body}"
      {:error, reason} -> raise "no answer from the relay: #{inspect(reason)}"
    end
  end

  # httpc checks no certificate unless it is told to.
  defp tls("https:" <> _) do
    check = :public_key.pkix_verify_hostname_match_fun(:https)
    certificates = :public_key.cacerts_get()
    [ssl: [verify: :verify_peer, cacerts: certificates, customize_hostname_check: [match_fun: check]]]
  end

  defp tls(_), do: []
end

{:ok, _} = Application.ensure_all_started(:inets)
{:ok, _} = Application.ensure_all_started(:ssl)

case System.argv() do
  ["mint", user] ->
    {username, password} = TurnCredentials.mint(System.fetch_env!("TURN_SECRET"), user)
    IO.puts("#{username}\n#{password}")

  ["ask", user] ->
    IO.puts(TurnCredentials.ask(System.fetch_env!("RELAY"), System.fetch_env!("RELAY_KEY"), user))
end
