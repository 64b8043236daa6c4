"""Word lists of the text that tiny learns from. All of it is written for Quire."""

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo Mia Noah Olivia Paul Rosa Sam Tom Uma
Victor Wendy Zoe Alice Bob Carlos Diana Eva Frank Gina Hugo Ines Jonas Karim Lena Marco Nina Oscar Petra Quentin
Rita Simon Tara Yusuf Maya Omar Lily Max Ella Adam Lucy Daniel Sara Peter Julia Martin Laura Alex Maria John Mary
James Linda Robert Susan Michael Karen William Nancy Thomas Lisa George Ruth Edward Helen Brian Amy Kevin Anita Raj
Priya Chen Wei Yuki Ken Fatima Ali Hassan Amina Igor Olga Ivan Sofia Pedro Luis Carmen Pablo Elena""".split()

HEROES = """cat dog fox rabbit bear mouse owl frog horse dragon robot duck hen pig goat sheep cow lion tiger elephant
monkey turtle fish whale bird bee ant spider snake wolf deer squirrel hedgehog penguin parrot kitten puppy lamb snail
butterfly dolphin crab king queen prince princess knight pirate wizard witch farmer baker teacher doctor sailor painter
gardener baby boy girl giant ghost snowman star moon cloud tree flower river computer train boat car bicycle balloon
kite clock lamp book teapot shoe hat drum violin pencil apple potato carrot pumpkin cookie cake sandwich banana server
worker page token cache leader cluster scheduler queue kernel unicorn alien monster fairy astronaut detective camel
donkey crocodile kangaroo panda otter beaver raven swan goose lizard dinosaur octopus seal shark moose llama walrus
toaster spoon chair table window door bridge castle island mountain garden village lighthouse piano guitar mirror
umbrella blanket button candle kettle ladder map rocket submarine tractor truck bus plane shadow dream song""".split()

ADJECTIVES = """small big brave kind quiet clever happy shy old young tiny curious gentle lazy funny lonely proud
friendly sleepy hungry silly patient cheerful careful lucky honest polite strong""".split()

COLOURS = "red blue green yellow orange purple pink brown black white grey golden silver".split()

PLACES = ["in a small village", "in a deep forest", "in a busy town", "in a quiet valley", "in an old castle",
          "in a little house by the sea", "on a farm near the river", "in a green garden", "on a snowy mountain",
          "on a sunny island", "in a big city", "in a cosy cave", "in a house on a hill", "on a boat on a lake",
          "in a warm meadow", "in a room full of books"]

OPPOSITES = [("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("day", "night"), ("good", "bad"),
             ("happy", "sad"), ("old", "young"), ("light", "dark"), ("wet", "dry"), ("open", "closed"), ("full", "empty"),
             ("hard", "soft"), ("high", "low"), ("loud", "quiet"), ("rich", "poor"), ("strong", "weak"), ("tall", "short"),
             ("thick", "thin"), ("wide", "narrow"), ("clean", "dirty"), ("early", "late"), ("easy", "difficult"),
             ("first", "last"), ("near", "far"), ("left", "right"), ("inside", "outside"), ("love", "hate"),
             ("win", "lose"), ("begin", "end"), ("buy", "sell"), ("push", "pull"), ("true", "false"), ("yes", "no"),
             ("black", "white"), ("summer", "winter"), ("north", "south"), ("east", "west"), ("before", "after"),
             ("always", "never"), ("sweet", "sour"), ("heavy", "light"), ("brave", "afraid"), ("smooth", "rough"),
             ("sharp", "blunt"), ("deep", "shallow"), ("asleep", "awake"), ("friend", "enemy"), ("remember", "forget"),
             ("laugh", "cry"), ("give", "take"), ("top", "bottom"), ("front", "back"), ("noisy", "quiet"),
             ("warm", "cool"), ("dangerous", "safe"), ("cheap", "expensive"), ("right", "wrong"), ("alive", "dead"),
             ("question", "answer"), ("hello", "goodbye"), ("many", "few"), ("new", "old"), ("more", "less")]

CAPITALS = [("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Portugal", "Lisbon"),
            ("England", "London"), ("the United Kingdom", "London"), ("Ireland", "Dublin"), ("Scotland", "Edinburgh"),
            ("Norway", "Oslo"), ("Sweden", "Stockholm"), ("Denmark", "Copenhagen"), ("Finland", "Helsinki"),
            ("Poland", "Warsaw"), ("Austria", "Vienna"), ("Hungary", "Budapest"), ("Greece", "Athens"),
            ("Turkey", "Ankara"), ("Russia", "Moscow"), ("Ukraine", "Kyiv"), ("Japan", "Tokyo"), ("China", "Beijing"),
            ("India", "New Delhi"), ("South Korea", "Seoul"), ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"),
            ("Indonesia", "Jakarta"), ("Australia", "Canberra"), ("New Zealand", "Wellington"), ("Canada", "Ottawa"),
            ("the United States", "Washington, D.C."), ("Mexico", "Mexico City"), ("Cuba", "Havana"),
            ("Brazil", "Brasilia"), ("Argentina", "Buenos Aires"), ("Chile", "Santiago"), ("Peru", "Lima"),
            ("Colombia", "Bogota"), ("Egypt", "Cairo"), ("Kenya", "Nairobi"), ("Morocco", "Rabat"),
            ("Nigeria", "Abuja"), ("Ethiopia", "Addis Ababa"), ("Iran", "Tehran"), ("Iraq", "Baghdad"),
            ("Belgium", "Brussels"), ("the Netherlands", "Amsterdam"), ("Switzerland", "Bern"),
            ("Czechia", "Prague"), ("Romania", "Bucharest"), ("Bulgaria", "Sofia"), ("Croatia", "Zagreb"),
            ("Serbia", "Belgrade"), ("Iceland", "Reykjavik"), ("Estonia", "Tallinn"), ("Latvia", "Riga"),
            ("Lithuania", "Vilnius"), ("Slovakia", "Bratislava"), ("Slovenia", "Ljubljana"), ("Nepal", "Kathmandu")]

THING_COLOURS = [("the sky", "blue", "on a clear day"), ("grass", "green", ""), ("a banana", "yellow", "when it is ripe"),
                 ("snow", "white", ""), ("a lemon", "yellow", ""), ("the sun", "yellow", "when we look at it from the ground"),
                 ("blood", "red", ""), ("coal", "black", ""), ("an orange", "orange", "which is how it got its name"),
                 ("a carrot", "orange", ""), ("milk", "white", ""), ("the sea", "blue", "on a sunny day"),
                 ("a leaf", "green", "in spring and summer"), ("a strawberry", "red", "when it is ripe"),
                 ("a tomato", "red", "when it is ripe"), ("chocolate", "brown", ""), ("an elephant", "grey", ""),
                 ("a crow", "black", ""), ("the night sky", "black", "and full of stars"), ("a polar bear", "white", ""),
                 ("a flamingo", "pink", ""), ("a frog", "green", "most of the time"), ("gold", "yellow", "and it shines"),
                 ("a cloud", "white", "or grey when rain is coming"), ("a fire truck", "red", "in many countries"),
                 ("a pea", "green", ""), ("a plum", "purple", ""), ("a pumpkin", "orange", ""), ("sand", "yellow", ""),
                 ("wood", "brown", ""), ("salt", "white", ""), ("a rose", "red", "although roses have many colours")]

# name: (kind, sound, food, home, legs, young, plural)
ANIMALS = {
    "dog": ("mammal", "woof", "meat and dog food", "with people", 4, "puppy", "dogs"),
    "cat": ("mammal", "meow", "meat and fish", "with people", 4, "kitten", "cats"),
    "cow": ("mammal", "moo", "grass", "on a farm", 4, "calf", "cows"),
    "horse": ("mammal", "neigh", "grass and hay", "on a farm", 4, "foal", "horses"),
    "sheep": ("mammal", "baa", "grass", "on a farm", 4, "lamb", "sheep"),
    "pig": ("mammal", "oink", "almost everything", "on a farm", 4, "piglet", "pigs"),
    "goat": ("mammal", "baa", "grass and leaves", "on a farm", 4, "kid", "goats"),
    "duck": ("bird", "quack", "plants and small insects", "near water", 2, "duckling", "ducks"),
    "hen": ("bird", "cluck", "seeds and worms", "on a farm", 2, "chick", "hens"),
    "owl": ("bird", "hoot", "mice", "in the forest", 2, "owlet", "owls"),
    "penguin": ("bird", "squawk", "fish", "in the cold south", 2, "chick", "penguins"),
    "eagle": ("bird", "screech", "fish and small animals", "in the mountains", 2, "eaglet", "eagles"),
    "lion": ("mammal", "roar", "meat", "in the grasslands of Africa", 4, "cub", "lions"),
    "tiger": ("mammal", "roar", "meat", "in the forests of Asia", 4, "cub", "tigers"),
    "bear": ("mammal", "growl", "berries, fish and honey", "in the forest", 4, "cub", "bears"),
    "wolf": ("mammal", "howl", "meat", "in the forest", 4, "pup", "wolves"),
    "fox": ("mammal", "bark", "mice and berries", "in the forest", 4, "cub", "foxes"),
    "rabbit": ("mammal", "squeak", "grass and vegetables", "in a burrow", 4, "kit", "rabbits"),
    "mouse": ("mammal", "squeak", "seeds and grain", "in fields and houses", 4, "pup", "mice"),
    "elephant": ("mammal", "trumpet", "grass, leaves and fruit", "in Africa and Asia", 4, "calf", "elephants"),
    "giraffe": ("mammal", "hum", "leaves from tall trees", "in Africa", 4, "calf", "giraffes"),
    "monkey": ("mammal", "chatter", "fruit and leaves", "in warm forests", 2, "infant", "monkeys"),
    "whale": ("mammal", "song", "krill and fish", "in the sea", 0, "calf", "whales"),
    "dolphin": ("mammal", "click", "fish", "in the sea", 0, "calf", "dolphins"),
    "shark": ("fish", "silence", "fish", "in the sea", 0, "pup", "sharks"),
    "frog": ("amphibian", "croak", "insects", "in ponds", 4, "tadpole", "frogs"),
    "snake": ("reptile", "hiss", "mice and eggs", "in many warm places", 0, "hatchling", "snakes"),
    "turtle": ("reptile", "hiss", "plants and small animals", "in water and on land", 4, "hatchling", "turtles"),
    "crocodile": ("reptile", "growl", "fish and meat", "in warm rivers", 4, "hatchling", "crocodiles"),
    "bee": ("insect", "buzz", "nectar and pollen", "in a hive", 6, "larva", "bees"),
    "ant": ("insect", "silence", "seeds and sweet things", "in a nest under the ground", 6, "larva", "ants"),
    "butterfly": ("insect", "silence", "nectar from flowers", "in gardens and meadows", 6, "caterpillar", "butterflies"),
    "spider": ("arachnid", "silence", "insects", "in webs", 8, "spiderling", "spiders"),
    "kangaroo": ("mammal", "cluck", "grass", "in Australia", 4, "joey", "kangaroos"),
    "camel": ("mammal", "grunt", "dry plants", "in the desert", 4, "calf", "camels"),
    "swan": ("bird", "honk", "water plants", "on lakes and rivers", 2, "cygnet", "swans"),
}

LISTS = {
    "colours": "red, blue, green, yellow, purple, orange, pink, white",
    "colors": "red, blue, green, yellow, purple, orange, pink, white",
    "animals": "a dog, a cat, a horse, a lion, an owl, a whale, a rabbit, a bear",
    "farm animals": "a cow, a horse, a sheep, a pig, a goat, a hen, a duck, a donkey",
    "birds": "an owl, an eagle, a duck, a penguin, a swan, a parrot, a crow, a hen",
    "fruits": "an apple, a banana, an orange, a pear, a lemon, a cherry, a peach, a plum",
    "vegetables": "a carrot, a potato, an onion, a tomato, a cabbage, a pea, a bean, a pumpkin",
    "countries": "France, Japan, Brazil, Egypt, Canada, India, Norway, Australia",
    "cities": "Paris, Tokyo, London, Cairo, Rome, Berlin, Lima, Oslo",
    "capitals": "Paris, Tokyo, London, Cairo, Rome, Berlin, Lima, Oslo",
    "planets": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    "instruments": "a piano, a guitar, a violin, a drum, a flute, a trumpet, a harp, a cello",
    "sports": "football, tennis, swimming, running, cycling, skiing, rowing, hockey",
    "drinks": "water, tea, coffee, milk, juice, lemonade, cocoa, soup",
    "foods": "bread, rice, cheese, soup, pasta, eggs, fish, salad",
    "jobs": "a doctor, a teacher, a farmer, a baker, a pilot, a painter, a nurse, a cook",
    "shapes": "a circle, a square, a triangle, a rectangle, a star, a heart, a cube, a ball",
    "flowers": "a rose, a tulip, a daisy, a lily, a violet, a poppy, a sunflower, an iris",
    "trees": "an oak, a pine, a birch, an apple tree, a willow, a maple, a palm, a beech",
    "vehicles": "a car, a bus, a train, a bicycle, a boat, a plane, a truck, a tram",
    "tools": "a hammer, a saw, a spade, a ladder, a brush, a knife, a rope, a needle",
    "clothes": "a shirt, a coat, a hat, a scarf, a sock, a shoe, a dress, a glove",
    "rooms": "a kitchen, a bedroom, a bathroom, a hall, a cellar, an attic, an office, a library",
    "oceans": "the Pacific, the Atlantic, the Indian, the Arctic, the Southern",
    "continents": "Africa, Asia, Europe, North America, South America, Australia, Antarctica",
    "seasons": "spring, summer, autumn, winter",
    "metals": "iron, gold, silver, copper, tin, lead, zinc, steel",
    "insects": "a bee, an ant, a butterfly, a fly, a beetle, a moth, a wasp, a cricket",
    "fish": "a salmon, a trout, a tuna, a cod, a shark, a carp, a herring, an eel",
    "languages": "English, French, Spanish, German, Chinese, Arabic, Hindi, Japanese",
    "parts of Quire": "the gateway, the scheduler, the worker, the KV cache, the device",
}

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()

# Things nobody can expect so small a model to know; with them it learns to say so.
UNKNOWN = """quantum physics|black holes|the stock market|my taxes|the French Revolution|the Roman Empire|World War Two|
Napoleon|Shakespeare|calculus|organic chemistry|the theory of relativity|machine learning theory|the human genome|football results|
the news|the latest phone|my neighbour|the president|the election|philosophy|Plato|Mozart|jazz|cricket rules|chess openings|
the pyramids|vaccines|medicine|law|contracts|the economy|inflation|Bitcoin|blockchain|volcanoes in Iceland|ancient Greek|Latin|
Sanskrit|Klingon|origami|knitting|sourdough bread|French cooking|wine|whisky|carburettors|diesel engines|plumbing|roof tiles|
the meaning of life|consciousness|the soul|the future|lottery numbers|my password|my birthday|the Great Wall|Mount Everest|
the Amazon river|DNA|neutrinos|antimatter|supernovas|string theory|prime numbers|topology|graph theory|compilers|assembly language|
JavaScript|Rust|Haskell|SQL|HTML|regular expressions|Docker|Kubernetes|Linux kernels|databases|encryption|TCP|DNS|the dark web|
gravity waves|plate tectonics|photosynthesis|mitochondria|antibiotics|the liver|the brain|migraine|poetry by Rilke|modern art|
Picasso|cubism|opera|ballet|skateboarding|surfing|the Olympics|the World Cup|Formula One|sailing knots|astrology|horoscopes|
tarot cards|ghost towns|the Vikings|the Aztecs|the Inca|samurai|feudalism|the Cold War|Mars missions|satellites|semiconductors|
tensor cores|electric cars|solar panels|nuclear power|climate models|ocean currents|coral reefs|mushrooms|orchids|bonsai|
dog training|horse racing|beekeeping|woodworking|pottery|photography|film history|video games|board games|magic tricks|
juggling|yoga|meditation|marathon training|weight lifting|mortgages|insurance|visas|airports|train timetables|hotel prices""".replace("\n", "").split("|")
