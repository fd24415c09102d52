using System;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Security.Cryptography;
using System.Text;
using System.Threading.Tasks;

static class TurnCredentials
{
    static readonly HttpClient Client = new HttpClient { Timeout = TimeSpan.FromSeconds(5) };

    /// <summary>Username and password that the relay accepts for this time.</summary>
    static (string Username, string Password) Mint(string secret, string user, TimeSpan ttl)
    {
        var username = $"{DateTimeOffset.UtcNow.Add(ttl).ToUnixTimeSeconds()}:{user}";
        using (var hmac = new HMACSHA1(Encoding.UTF8.GetBytes(secret)))
        {
            return (username, Convert.ToBase64String(hmac.ComputeHash(Encoding.UTF8.GetBytes(username))));
        }
    }

    /// <summary>The relay's answer: an RTCConfiguration with iceServers, to be passed on to the page.</summary>
    static async Task<string> Ask(string relay, string key, string user)
    {
        var url = $"{relay}/ice?username={Uri.EscapeDataString(user)}";
        using (var request = new HttpRequestMessage(HttpMethod.Get, url))
        {
            request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", key);
            using (var answer = await Client.SendAsync(request))
            {
                var body = await answer.Content.ReadAsStringAsync();
                if (!answer.IsSuccessStatusCode)
                {
                    throw new HttpRequestException($"the relay answers {(int)answer.StatusCode}: {body}");
                }
                return body;
            }
        }
    }

    static string Variable(string name) => Environment.GetEnvironmentVariable(name);

    static void Main(string[] arguments)
    {
        if (arguments[0] == "mint")
        {
            var (username, password) = Mint(Variable("TURN_SECRET"), arguments[1], TimeSpan.FromHours(1));
            Console.WriteLine($"{username}\n{password}");
        }
        else
        {
            var answer = Ask(Variable("RELAY"), Variable("RELAY_KEY"), arguments[1]);
            Console.WriteLine(answer.GetAwaiter().GetResult());
        }
    }
}
