import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.time.Instant;
import java.util.Base64;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

import static java.nio.charset.StandardCharsets.UTF_8;

public class TurnCredentials {
    record Credential(String username, String password) {}

    /** Username and password that the relay accepts for this time. */
    static Credential mint(String secret, String user, Duration ttl) throws GeneralSecurityException {
        String username = Instant.now().plus(ttl).getEpochSecond() + ":" + user;
        Mac mac = Mac.getInstance("HmacSHA1");
        mac.init(new SecretKeySpec(secret.getBytes(UTF_8), "HmacSHA1"));
        byte[] digest = mac.doFinal(username.getBytes(UTF_8));
        return new Credential(username, Base64.getEncoder().encodeToString(digest));
    }

    /** The relay's answer for this user: an RTCConfiguration with iceServers, to be passed on to the page. */
    static String ask(String relay, String key, String user) throws IOException, InterruptedException {
        HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();
        HttpRequest request = HttpRequest.newBuilder()
            .uri(URI.create(relay + "/ice?username=" + URLEncoder.encode(user, UTF_8)))
            .header("Authorization", "Bearer " + key)
            .timeout(Duration.ofSeconds(5))
            .build();
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IOException("the relay answers " + answer.statusCode() + ": " + answer.body());
        }
        return answer.body();
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("mint")) {
            Credential credential = mint(System.getenv("TURN_SECRET"), arguments[1], Duration.ofHours(1));
            System.out.println(credential.username() + "\n" + credential.password());
        } else {
            System.out.println(ask(System.getenv("RELAY"), System.getenv("RELAY_KEY"), arguments[1]));
        }
    }
}
