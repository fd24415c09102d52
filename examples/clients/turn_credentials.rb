require 'json'
require 'net/http'
require 'openssl'

# Username and password that the relay accepts for ttl seconds.
def mint(secret, user, ttl = 3600)
  username = "#{Time.now.to_i + ttl}:#{user}"
  [username, [OpenSSL::HMAC.digest('SHA1', secret, username)].pack('m0')]
end

# The iceServers that the relay's endpoint gives for this user.
def ask(relay, key, user)
  uri = URI("#{relay}/v1/credentials?#{URI.encode_www_form(username: user)}")
  options = { use_ssl: uri.scheme == 'https', open_timeout: 5, read_timeout: 5, max_retries: 0 }
  answer = Net::HTTP.start(uri.host, uri.port, options) do |http|
    http.get(uri.request_uri, 'Authorization' => "Bearer #{key}")
  end
  raise "the relay answers #{answer.code}: #{answer.body}" unless answer.is_a?(Net::HTTPOK)

  JSON.parse(answer.body).fetch('iceServers')
end

command, user = ARGV
if command == 'mint'
  puts mint(ENV.fetch('TURN_SECRET'), user)
else
  puts JSON.generate(ask(ENV.fetch('RELAY'), ENV.fetch('RELAY_KEY'), user))
end
