<?php
declare(strict_types=1);

/** Username and password that the relay accepts for $ttl seconds. */
function mint(string $secret, string $user, int $ttl = 3600): array
{
    $username = (time() + $ttl) . ':' . $user;
    return [$username, base64_encode(hash_hmac('sha1', $username, $secret, true))];
}

/** The iceServers that the relay's endpoint gives for this user. */
function ask(string $relay, string $key, string $user): array
{
    $context = stream_context_create(['http' => [
        'header' => "Authorization: Bearer $key",
        'timeout' => 5,
        'ignore_errors' => true, // so that the body of an error can be read
    ]]);
    $url = "$relay/v1/credentials?" . http_build_query(['username' => $user]);
    $body = @file_get_contents($url, false, $context);
    if ($body === false) {
        throw new RuntimeException("no answer from $relay");
    }
    $status = (int) explode(' ', $http_response_header[0])[1];
    if ($status !== 200) {
        throw new RuntimeException("the relay answers $status: $body");
    }
    return json_decode($body, true, 512, JSON_THROW_ON_ERROR)['iceServers'];
}

[, $command, $user] = $argv;
if ($command === 'mint') {
    echo implode("\n", mint(getenv('TURN_SECRET'), $user)), "\n";
} else {
    echo json_encode(ask(getenv('RELAY'), getenv('RELAY_KEY'), $user)), "\n";
}
