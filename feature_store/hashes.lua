-- Read many hashes in one round trip.
--
-- KEYS     {ns:p}:…  read
-- ARGV     nothing: the hashes as they stand; or, of one hash, the fields wanted
-- Returns  one flat hash a key | the values, nil for what is missing
if #ARGV > 0 then return redis.call('HMGET', KEYS[1], unpack(ARGV)) end
local out = {}
for i = 1, #KEYS do out[i] = redis.call('HGETALL', KEYS[i]) end
return out
