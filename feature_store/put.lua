-- Write to keys that nobody looks at yet, or drop such.
--
-- KEYS     {ns:p}:INC:…  written
-- ARGV[1]  MessagePack: one list a key: HSET field, value, … | SADD member, … | UNLINK
local PART = 1000 -- how many values one command is given: unpack() has its limit
for i, words in ipairs(cmsgpack.unpack(ARGV[1])) do
  if words[1] == 'UNLINK' then redis.call('UNLINK', KEYS[i]) end
  for from = 2, #words, PART do
    redis.call(words[1], KEYS[i], unpack(words, from, math.min(from + PART - 1, #words)))
  end
end
return {'OK'}
